"""The model card says what was merged, in the words that the hub reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from untax.merge.card import model_card
from untax.merge.references import read_reference

from .tiny_models import Config, linear, untax_merge


@pytest.mark.parametrize(
    ("what", "library", "relation"), [("model", "transformers", "merge"), ("adapter", "peft", "adapter")]
)
def test_metadata(what: str, library: str, relation: str) -> None:
    references = [read_reference(text, where="test") for text in ("org/base+a0", "org/base+a1")]
    text = model_card("mine", references, {"org/base": "hub:org/base@1"}, "a: 1", {"Method": "`linear`"}, what)
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == ["org/base"]
    assert data["library_name"] == library
    assert data["base_model_relation"] == relation
    assert "| `org/base` | `hub:org/base@1` |" in text


@pytest.mark.parametrize("as_adapter", [False, True])
def test_every_merge_has_one_with_digests(as_adapter: bool, models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**linear(models))
    untax_merge(path, tmp_path / "out", as_adapter=as_adapter, scales=(0.5,))
    card = (tmp_path / "out/README.md").read_text()
    manifest = yaml.safe_load((tmp_path / "out/untax.json").read_text())
    assert len([name for name in manifest["inputs"] if not name.startswith("tokenizer of ")]) == 3
    for name, digest in manifest["inputs"].items():
        assert f"| `{name}` | `{digest}` |" in card
    assert path.read_text().strip() in card
    assert "- Scale: 0.5" in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])  # a folder is no repository
    untax_merge(path, tmp_path / "bare", "--no-write-model-card", as_adapter=as_adapter)
    assert not (tmp_path / "bare/README.md").exists()
    assert (tmp_path / "bare/untax.json").exists()
