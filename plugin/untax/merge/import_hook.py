"""What `untax mergekit enable` runs at every start of Python: a finder that waits for mergekit, and nothing else.

Python executes this file by its path, so nothing is imported here but what every Python has imported already (not even
``__future__``).
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SUPPORTED = "0.1.5"
"""The version of mergekit whose insides untax knows."""

# Imports all that is changed, and whatever merges by a YAML imports it.
_TRIGGER = "mergekit.plan"


class MergekitFinder:
    """Finds one module, as the other finders do, and calls ``activate`` once it was executed."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The module's spec, with a step added to its loader; None for all other modules."""
        if name != _TRIGGER:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            execute(module)
            activate()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def activate() -> None:
    """Register untax's merge methods and let mergekit read adapters as deltas; a warning where that cannot be.

    Whatever goes wrong, mergekit works on without untax.
    """
    try:
        from importlib.metadata import version

        if version("mergekit") != SUPPORTED:
            _warn(f"it knows mergekit {SUPPORTED}, and this is {version('mergekit')}")
            return
        from untax.merge.mergekit_methods import register
        from untax.merge.mergekit_reader import install

        register()
        install()
    except Exception as error:
        _warn(" ".join(f"{type(error).__name__}: {error}".split()))


def _warn(reason: str) -> None:
    print(f"untax: mergekit runs without untax: {reason}. (`untax mergekit status`)", file=sys.stderr)


def wait_for_mergekit() -> None:
    """Put the finder in front, once."""
    if not any(type(finder).__name__ == MergekitFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, MergekitFinder())


if __name__ == "untax at start":
    wait_for_mergekit()
