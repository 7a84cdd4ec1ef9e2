"""The bases' shapes, against transformers' own models, built without their weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from untax.recipes.presets.bases import BASES, Base

# What the hub counts in the published weights.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_parameters_are_transformers_and_the_hubs(base: Base, tmp_path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (tmp_path / "config.json").write_text(json.dumps(base.config))
    config = AutoConfig.from_pretrained(tmp_path)  # no code of the hub is trusted
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(weight.numel() for weight in model.parameters())
    assert base.architecture.parameters() == counted == PUBLISHED[base.path]


def test_baichuan_is_no_model_of_transformers():
    """Why it has no preset: should transformers learn it, this fails, and table 6's other rows can be had."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert "baichuan" not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert "llama" in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
