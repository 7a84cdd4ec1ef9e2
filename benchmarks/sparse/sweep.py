"""Lambda against sparsity, gain and tax: every penalty, on a 260k-parameter model that was really trained.

    python benchmarks/sparse/sweep.py --base MODEL --data mix.jsonl.gz --stories tinystories.txt.gz --work /tmp/sweep

trains by `axolotl train`, each arm in a process of its own, and goes on where it was stopped. Results go to
benchmarks/sparse/results.json; `python benchmarks/sparse/draw.py` draws them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from arms import Arm, arms
from measure import END_OF_TEXT, STORIES, WITH_INPUT, WITHOUT_INPUT, Scales, read_stories, sparsity

HERE = Path(__file__).resolve().parent
HELD_OUT, MOST_TOKENS = 400, 128
BATCH = 8
DENSE_SCALES = (1.0, 0.75, 0.5, 0.25)
CONFIG: dict[str, Any] = {
    "plugins": ["untax.DeltaPenaltyPlugin", "untax.ManifestPlugin"],
    "datasets": [
        {
            "path": "train.jsonl",
            "type": {
                **{f"field_{name}": name for name in ("instruction", "input", "output")},
                "format": WITH_INPUT,
                "no_input_format": WITHOUT_INPUT,
            },
        }
    ],
    "dataset_prepared_path": "prepared",
    "dataset_num_proc": 1,
    "sequence_len": 512,
    "train_on_inputs": False,
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0,
    "lora_target_linear": True,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "micro_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "cosine",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "logging_steps": 50,
    "save_strategy": "no",
    "special_tokens": {"pad_token": "<unk>"},
}


def main() -> None:
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    _prepare(options)
    fisher = _fisher(options)
    chosen = [arm for arm in arms(fisher) if options.only in arm.name]
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = list(pool.map(lambda arm: _train(arm, options), chosen))
    scales = Scales(options.base, options.work / "held-out.jsonl", options.stories)
    base = scales.of(scales.base)
    runs = [_result(arm, folder, scales, base) for arm, folder in zip(chosen, folders, strict=True)]
    _write(options, base, runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--data", required=True, type=Path, help="rows of instruction, input, output; .jsonl.gz")
    parser.add_argument("--stories", required=True, type=Path, help="texts like those of the base's pretraining")
    parser.add_argument("--work", required=True, type=Path, help="where trainings are kept")
    parser.add_argument("--only", default="", help="arms whose name contains this")
    parser.add_argument("--jobs", default=2, type=int)
    parser.add_argument("--out", default=HERE / "results.json", type=Path)
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> None:
    """Short rows in a fixed random order: the first 400 are held out, the others are trained on."""
    from transformers import AutoTokenizer

    if (options.work / "train.jsonl").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    with gzip.open(options.data, "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    random.Random(0).shuffle(rows)
    wanted = HELD_OUT + BATCH * max(arm.steps for arm in arms(""))
    kept: list[str] = []
    for row in rows:
        fields = {key: row.get(key) or "" for key in ("instruction", "input", "output")}
        text = "".join(fields.values())
        if len(fields["output"]) < 8 or len(text) > 4 * MOST_TOKENS:
            continue
        if len(tokenizer(text)["input_ids"]) <= MOST_TOKENS:
            kept.append(json.dumps(fields) + "\n")
        if len(kept) == wanted:
            break
    (options.work / "held-out.jsonl").write_text("".join(kept[:HELD_OUT]), encoding="utf-8")
    (options.work / "train.jsonl").write_text("".join(kept[HELD_OUT:]), encoding="utf-8")


def _fisher(options: argparse.Namespace) -> str:
    """Of the base, on stories that the tax is not measured on."""
    out = options.work.resolve() / "fisher.safetensors"
    if not out.exists():
        texts = options.work / "fisher-stories.txt"
        texts.write_text(END_OF_TEXT.join(read_stories(options.stories)[STORIES:]), encoding="utf-8")
        data = ["--data", texts.name, "--samples", "256", "-o", out.name]
        _run(["untax", "fisher", options.base, *data], options.work, "fisher.log")
    return out.name


def _train(arm: Arm, options: argparse.Namespace) -> Path:
    folder = "-".join(arm.name.replace("=", "-").replace(",", "").split())
    if not (options.work / folder / "untax.json").exists():
        config = {**CONFIG, "base_model": options.base, "max_steps": arm.steps, "seed": arm.seed, **arm.keys}
        path = options.work / f"{folder}.yaml"
        path.write_text(yaml.safe_dump({**config, "output_dir": folder}))
        started = time.time()
        _run(["axolotl", "train", path.name, "--launcher", "python"], options.work, f"{folder}.log")
        print(f"{arm.name}: {time.time() - started:.0f} s", flush=True)
    return options.work / folder


def _run(command: list[str], folder: Path, log: str) -> None:
    program = Path(sys.executable).parent / command[0]
    quiet = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / log).open("w") as out:
        done = subprocess.run(
            [str(program), *command[1:]], cwd=folder, stdout=out, stderr=out, env={**os.environ, **quiet}
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {folder / log}")


def _result(arm: Arm, folder: Path, scales: Scales, base: dict[str, float]) -> dict[str, Any]:
    section = json.loads((folder / "untax.json").read_text()).get("penalty") or {}
    asked = any(key.startswith("delta_") for key in arm.keys)
    if asked and section.get("steps_penalised") != arm.steps:
        raise SystemExit(f"{folder}: its manifest does not prove that every step was penalised")
    measured = scales.adapter(folder, DENSE_SCALES if arm.kind == "dense" else (1.0,))
    for one in measured:
        one["tax"] = one["story_nll"] - base["story_nll"]
    found = {"arm": arm.kind, **arm.keys, "steps": arm.steps, "seed": arm.seed, **measured[0], **sparsity(folder)}
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}, flush=True)
    return {**found, "scaled": measured[1:]} if len(measured) > 1 else found


def _write(options: argparse.Namespace, base: dict[str, float], runs: list[dict[str, Any]]) -> None:
    packages = ("axolotl", "torch", "transformers", "peft")
    content = {
        "what": "LoRA SFT (r = 16, alpha = 16, all linear layers, batch 8, AdamW, cosine) of stories260k",
        "command": f"python benchmarks/sparse/sweep.py --base {Path(options.base).name} --data {options.data.name} "
        f"--stories {options.stories.name} --work WORK",
        "versions": {name: metadata.version(name) for name in packages},
        "base": base,
        "runs": runs,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(runs)} runs in {options.out}")


if __name__ == "__main__":
    main()
