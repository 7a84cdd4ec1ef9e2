"""A Fisher from model and data to file and manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import untax
from toys import sft_rows, write_jsonl
from untax.adapters.statistics import Diagonal
from untax.errors import UntaxError
from untax.fisher.fisher import Made, Settings, fisher
from untax.fisher.inputs import Data
from untax.fisher.model import Model
from untax.fisher.output import manifest_name
from untax.fisher.store import write_tensors
from untax.manifest import changed_outputs, digest_file, digest_model, read_manifest

from .networks import assert_same, naive

STORIES = [
    f"One day, a girl named Lily found {count} red balls in the {place}."
    for count in range(9)
    for place in ("park", "box")
]
SMALL = Settings(samples=5, sequence_len=20)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "stories.txt").write_text("\n\n".join(STORIES))
    return Data(tmp_path / "stories.txt", prompt=lambda row: f"Do: {row['instruction']}\n")


@pytest.fixture
def make(base_model: Path, data: Data, tmp_path: Path) -> Callable[..., Made]:
    def make(name: str = "f.safetensors", model: Model | None = None, **options: Any) -> Made:
        arguments = {"data": data, "settings": SMALL, "say": lambda text: None, "device": "cpu", **options}
        return fisher(model or Model(str(base_model), base_model), out=tmp_path / name, **arguments)

    return make


def tensors(path: Path) -> dict[str, Any]:
    diagonal = Diagonal(path)
    diagonal.validate()
    return {name: diagonal.rows(name, slice(None)) for name in diagonal.names}


@pytest.mark.parametrize("modules", ["linear", "all"])
def test_the_file_is_the_fisher_of_the_texts(
    make: Callable[..., Made], base_model: Path, data: Data, modules: str
) -> None:
    """Texts, tokens and gradients anew: by transformers and the definition."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from untax.fisher.sequences import TokenSequence

    settings = Settings(samples=len(STORIES), sequence_len=20, modules=modules)
    made = make(settings=settings)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    samples = [TokenSequence(0, tuple(tokenizer(text).input_ids[:20]), 1) for text in STORIES]
    network = AutoModelForCausalLM.from_pretrained(base_model)
    found = tensors(made.path)
    assert (made.tensors, made.samples) == (35 if modules == "linear" else 47, len(STORIES))
    assert made.tensors == len(found)
    assert made.tokens == sum(one.scored for one in samples)
    assert made.values == sum(value.numel() for value in found.values())
    assert made.mean == pytest.approx(sum(value.double().sum().item() for value in found.values()) / made.values)
    assert_same(found, naive(network, samples))


def test_the_file_says_how_it_was_made(make: Callable[..., Made], base_model: Path, data: Data, tmp_path: Path) -> None:
    made = make(settings=dataclasses.replace(SMALL, labels="model", seed=7))
    told = Diagonal(made.path).metadata
    expected = {
        "what": "fisher",
        "base": digest_model(base_model),
        "data": digest_file(data.path),
        "samples": "5",
        "tokens": str(made.tokens),
        "labels": "model",
        "modules": "linear",
        "dtype": "float32",
        "sequence_len": "20",
        "seed": "7",
        "untax": untax.__version__,
    }
    assert expected.items() <= told.items()
    assert "1/N * sum_n (d log p(x_n) / d theta_j)^2" in told["definition"]
    manifest = read_manifest(tmp_path, "f.untax.json")
    assert manifest is not None
    assert manifest["what"] == "fisher"
    assert changed_outputs(tmp_path, manifest) == []
    assert manifest["inputs"] == {name: told[name] for name in ("base", "data", "token_ids")}
    assert {name: str(value) for name, value in manifest["fisher"].items()}.items() <= told.items()
    assert manifest["seed"] == 7


def test_the_same_again_gives_the_same_bytes_in_any_process(
    make: Callable[..., Made], data: Data, base_model: Path
) -> None:
    """safetensors' own writer would order the metadata by each process's own hashes."""
    contents = {make(f"{number}.safetensors").path.read_bytes() for number in range(2)}
    program = (
        "import sys; from pathlib import Path\n"
        "from untax.fisher.fisher import Settings, fisher; from untax.fisher.inputs import Data\n"
        "from untax.fisher.model import Model\n"
        "base, data, out = map(Path, sys.argv[1:])\n"
        "fisher(Model(str(base), base), Data(data, str), out, Settings(samples=5, sequence_len=20), device='cpu')\n"
    )
    out = data.path.parent / "process.safetensors"
    subprocess.run([sys.executable, "-c", program, str(base_model), str(data.path), str(out)], check=True)
    contents.add(out.read_bytes())
    assert len(contents) == 1


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    written = {
        "b": torch.rand(3, 2),
        "a": torch.rand(5).bfloat16(),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor(2.0),
    }
    written["turned"] = torch.rand(4, 3).T
    write_tensors(tmp_path / "f.safetensors", written, {"z": "ü", "a": "1"})
    loaded = load_file(tmp_path / "f.safetensors")
    assert loaded.keys() == written.keys()
    for name, value in written.items():
        torch.testing.assert_close(loaded[name], value.float(), rtol=0, atol=0)
    assert Diagonal(tmp_path / "f.safetensors").metadata == {"z": "ü", "a": "1"}


# An adapter


@pytest.fixture
def adapted(base_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A random adapter, and its base with the delta added in plain arithmetic."""
    import peft
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    shutil.copytree(base_model, merged)
    weights, factors = (
        load_file(base_model / "model.safetensors"),
        load_file(tmp_path / "adapter/adapter_model.safetensors"),
    )
    for key in factors:
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[name] = weights[name] + 2 * factors[key.replace("lora_A", "lora_B")] @ factors[key]
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "adapter", merged


def test_a_base_with_an_adapter_is_the_merged_model(
    make: Callable[..., Made], base_model: Path, adapted: tuple[Path, Path]
) -> None:
    adapter, merged = adapted
    both = make("both.safetensors", Model(str(base_model), base_model, adapter=adapter))
    found = tensors(both.path)
    assert_same(found, tensors(make("merged.safetensors", Model(str(merged), merged)).path))
    plain = tensors(make("plain.safetensors").path)
    assert any((found[name] - plain[name]).norm() > 0.1 * plain[name].norm() for name in found)
    told = Diagonal(both.path).metadata
    assert told["base"] == digest_model(base_model)
    assert len(told["adapter"]) == 64


def test_an_adapter_that_peft_would_not_apply_whole_is_refused(
    make: Callable[..., Made], base_model: Path, adapted: tuple[Path, Path]
) -> None:
    path = adapted[0] / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(UntaxError, match=r"would drop this key of the adapter: .*down_proj"):
        make(model=Model(str(base_model), base_model, adapter=adapted[0]))
    path.write_text(json.dumps({**config, "target_modules": ["q_proj", "down_proj", "up_proj"]}))
    with pytest.raises(UntaxError, match=r"misses this key of the adapter: .*up_proj"):
        make(model=Model(str(base_model), base_model, adapter=adapted[0]))


def test_a_model_of_the_hub_is_known_by_its_commit(base_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc123"
    assert Model("owner/name", snapshot).identity() == {"base": "hub:owner/name@abc123"}


# Data


def test_responses_are_scored_after_their_prompts(make: Callable[..., Made], data: Data, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = sft_rows(5)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    made = make(data=dataclasses.replace(data, path=tmp_path / "rows.jsonl"), settings=Settings(samples=5))
    tokenizer = AutoTokenizer.from_pretrained(Path(untax.__file__).parent / "demo" / "base")
    assert made.tokens == sum(len(tokenizer(row["output"], add_special_tokens=False).input_ids) for row in rows)


def test_what_was_not_as_asked_is_said(make: Callable[..., Made], data: Data) -> None:
    told: list[str] = []
    made = make(settings=Settings(samples=100, sequence_len=18), say=told.append)
    assert made.samples == len(STORIES)
    assert told[1] == f"Warning: there are only {len(STORIES)} texts for 100 samples, and no more are used."
    assert any("texts are cut to 18 tokens" in sentence for sentence in told)
    assert read_manifest(made.path.parent, manifest_name(made.path))["fisher"]["samples"] == len(STORIES)  # type: ignore[index]


def test_texts_without_a_token_to_score_are_left_out(make: Callable[..., Made], data: Data, tmp_path: Path) -> None:
    rows = [*sft_rows(3), {"instruction": "very " * 99 + "long", "input": "", "output": "no room"}]
    data = dataclasses.replace(data, path=write_jsonl(tmp_path / "rows.jsonl", rows))
    told: list[str] = []
    assert make(data=data, settings=Settings(samples=4, sequence_len=60), say=told.append).samples == 3
    assert any("1 of 4 texts have no token to score and are left out" in sentence for sentence in told)
    with pytest.raises(UntaxError, match="None of 4 texts has a token to score within 3 tokens"):
        make("other.safetensors", data=data, settings=Settings(samples=4, sequence_len=3))


# What is refused, and what is left behind


def test_an_output_that_is_there_stays_unless_forced(make: Callable[..., Made], tmp_path: Path) -> None:
    made = make()
    before = made.path.read_bytes()
    with pytest.raises(UntaxError, match="there already"):
        make(settings=Settings(samples=2))
    assert made.path.read_bytes() == before
    make(settings=Settings(samples=2), force=True)
    assert made.path.read_bytes() != before
    manifest = read_manifest(tmp_path, "f.untax.json")
    assert manifest is not None
    assert changed_outputs(tmp_path, manifest) == []
    with pytest.raises(UntaxError, match=r"Name it f.safetensors"):
        make("f.bin")


def test_empty_texts_are_no_texts(make: Callable[..., Made], data: Data) -> None:
    data.path.write_text("\n\n \n\n\t\n")
    with pytest.raises(UntaxError, match="no text in the data"):
        make()


def test_texts_longer_than_the_context_are_refused(make: Callable[..., Made], data: Data) -> None:
    data.path.write_text("word " * 2000)
    with pytest.raises(UntaxError, match="context is 512 tokens") as error:
        make(settings=Settings(samples=1, sequence_len=600))
    assert error.value.fix == "Use --sequence-len 512."


def test_a_model_without_all_its_weights_is_refused(
    make: Callable[..., Made], base_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UntaxError, match=r"1 tensors are missing .*model.norm.weight"):
        make(model=Model(str(broken), broken))
    (broken / "tokenizer.json").unlink()
    with pytest.raises(UntaxError, match="tokenizer cannot be loaded"):
        make(model=Model(str(broken), broken))


def test_a_tokenizer_of_another_model_is_refused(make: Callable[..., Made], base_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base_model, other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 512, "content": "Lily"})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UntaxError, match="gives the token 512, but the model has only 512 embeddings"):
        make(model=Model(str(other), other))


def test_interrupted_it_leaves_nothing(make: Callable[..., Made], tmp_path: Path) -> None:
    @contextlib.contextmanager
    def interrupted(count: int) -> Iterator[Callable[[int], object]]:
        def stop(number: int) -> None:
            raise KeyboardInterrupt

        yield stop

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        make(progress=interrupted)
    assert set(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing(make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(UntaxError, match="No space left"):
        make()
    assert set(tmp_path.iterdir()) == before
