"""Axolotl's own validation of a YAML, as `axolotl train` does it, for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def axolotl_validated() -> Callable[[Path], Mapping[str, Any]]:
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    def validated(path: Path) -> Mapping[str, Any]:
        PluginManager.get_instance().plugins.clear()
        cfg = DictDefault({**yaml.safe_load(path.read_text()), "axolotl_config_path": str(path)})
        prepare_plugins(cfg)
        capabilities = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}
        return validate_config(cfg, capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})

    return validated
