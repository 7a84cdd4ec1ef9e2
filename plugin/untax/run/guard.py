"""Ends a command when whoever started it is gone, by SIGKILL too."""

from __future__ import annotations

import contextlib
import subprocess

# The pipe ends without a line when its other side is gone in whatever way. The command's own parent-death signal
# reaches its first process only, and `accelerate launch` leaves its training behind on it.
SCRIPT = """
exec 3<&0
( read -r line <&3 || { kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"; } ) >/dev/null 2>&1 &
"""


class Guard:
    """As long as it is not released, the process group ends with this process.

    Args:
        group: the id of the group.
    """

    def __init__(self, group: int):
        self._shell = subprocess.Popen(
            ("/bin/sh", "-c", SCRIPT, "untax-guard", str(group)), stdin=subprocess.PIPE, start_new_session=True
        )
        self._shell.wait()  # Only its background part stays, which nobody knows for a child of this process and kills.

    def release(self) -> None:
        """Let the group be; a second time nothing happens."""
        pipe = self._shell.stdin
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(b"\n")
                pipe.flush()
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
