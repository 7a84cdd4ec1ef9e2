"""The suites: one folder each, of lm-eval task YAMLs and what they load.

Built-in ones lie here; others come through the ``eval_suites`` hook. The tasks of suite ``x`` carry the tag (or are the
group) ``untax_x``; ``lm_eval --include_path <folder> --tasks untax_x`` runs them without untax. Data files are named in
the YAMLs (``dataset_kwargs: {file: ...}``, relative to the folder).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import digest_file, digest_json
from untax.plugins import named, registry


def suite_names() -> list[str]:
    """The names of all suites."""
    return sorted(registry("eval_suites"))


def suite_folder(name: str) -> Path:
    """The folder of a suite.

    Raises:
        UntaxError: there is no such suite, or its folder holds no YAML.
    """
    folder = Path(named("eval_suites", name, where="--suite"))
    if not any(folder.rglob("*.yaml")):
        raise UntaxError(f"The suite '{name}' has no task YAML.", where=folder, fix="Reinstall what provides it.")
    return folder


def suite_tag(name: str) -> str:
    """The tag or group under which lm-eval finds a suite's tasks."""
    return f"untax_{name}"


def suite_tasks(name: str) -> list[dict[str, Any]]:
    """The task YAMLs of a suite, parsed; functions stay names."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads ``!function module.name`` as the string ``module.name``."""

    Loader.add_constructor("!function", lambda _, node: str(node.value))
    files = sorted(suite_folder(name).rglob("*.yaml"))
    return [yaml.load(file.read_text(encoding="utf-8"), Loader) for file in files]  # noqa: S506 (a SafeLoader)


def suite_digest(name: str) -> str:
    """One digest of everything that decides a suite's scores: all files of its folder and the data they name."""
    folder = suite_folder(name)
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    data = {task.get("dataset_kwargs", {}).get("file") for task in suite_tasks(name)} - {None}
    return digest_json(
        {
            **{file.relative_to(folder).as_posix(): digest_file(file) for file in files},
            **{file: digest_file(folder / file) for file in data},
        }
    )


def suite_adds_bos(name: str) -> bool | None:
    """Whether the suite's texts begin with the beginning-of-sequence token; None leaves it to the tokenizer."""
    asked = {task.get("metadata", {}).get("add_bos_token") for task in suite_tasks(name)} - {None}
    return asked.pop() if len(asked) == 1 else None
