"""Write the checked-in recipes again: ``python -m untax.recipes.presets``, in the root of a checkout."""

from __future__ import annotations

from pathlib import Path

from untax.recipes.presets import write_presets

if __name__ == "__main__":
    write_presets(Path())
