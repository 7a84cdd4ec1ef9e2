"""``--on-finish COMMAND``: a mail, a message, the next job: whatever the user's own tools do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from untax.run.screen import Screen


def on_finish(command: str, folder: Path, *, status: str, failed: Mapping[str, str], screen: Screen) -> None:
    """Run the user's shell command at the end of a run, whichever it was. That it fails changes nothing.

    Args:
        command: for the shell, in the present folder.
        folder: the run folder, given as ``UNTAX_FOLDER``.
        status: ``done``, ``failed`` or ``interrupted``, given as ``UNTAX_STATUS``.
        failed: node -> reason; the names are given as ``UNTAX_FAILED``.
        screen: to say that the command failed.
    """
    variables = {
        **os.environ,
        "UNTAX_FOLDER": str(folder.resolve()),
        "UNTAX_STATUS": status,
        "UNTAX_FAILED": " ".join(failed),
    }
    code = subprocess.run(command, shell=True, env=variables, check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        screen.say(f"--on-finish: `{command}` ended with exit code {code}")
