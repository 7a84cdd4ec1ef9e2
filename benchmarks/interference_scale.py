"""`untax interference` on two adapters of a 7B model's shape: time and memory of the whole command.

    python benchmarks/interference_scale.py --work /tmp/interference

makes the adapters (random bf16 factors, r = 16 on all linear layers, 80 MB each; half of the second is the first's) and
writes benchmarks/results/interference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from sparsity_scale import LAYERS, RANK, SHAPES

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", default=HERE / "results" / "interference.json", type=Path)
    options = parser.parse_args()
    adapters = [options.work / "first", options.work / "second"]
    if not all((adapter / "adapter_model.safetensors").exists() for adapter in adapters):
        make(adapters)
    program = Path(sys.executable).parent / "untax"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    numbers = options.work / "numbers.json"
    started = time.perf_counter()
    subprocess.run(
        [str(program), "interference", *map(str, adapters), "--json", str(numbers)], check=True, env=environment
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    (pair,) = json.loads(numbers.read_text(encoding="utf-8"))["overall"]["pairs"]
    elements = len(adapters) * LAYERS * sum(rows * columns for rows, columns in SHAPES.values())
    found = {
        "what": "untax interference on two LoRA adapters of Llama-7B's shape, r = 16, all linear layers, one thread",
        "command": "python benchmarks/interference_scale.py --work WORK",
        "layers": LAYERS * len(SHAPES),
        "elements_of_both": elements,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_nanoseconds_per_element": round((used.ru_utime + used.ru_stime) / elements * 1e9, 2),
        "peak_rss_mb": round(used.ru_maxrss / 1024),
        "measured": {key: pair[key] for key in ("cosine", "sign_conflict", "overlap")},
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def make(adapters: list[Path]) -> None:
    """Half of the ranks of the second adapter are the first's, so the cosine is near one half."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors: list[dict[str, torch.Tensor]] = [{}, {}]
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            down = torch.randn(RANK + RANK // 2, columns, generator=generator).mul_(1e-2).bfloat16()
            up = torch.randn(rows, RANK + RANK // 2, generator=generator).mul_(1e-3).bfloat16()
            for own, first in zip(tensors, (0, RANK // 2), strict=True):
                own[f"{key}.lora_A.weight"] = down[first : first + RANK].contiguous()
                own[f"{key}.lora_B.weight"] = up[:, first : first + RANK].contiguous()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(SHAPES)}
    for adapter, own in zip(adapters, tensors, strict=True):
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        save_file(own, adapter / "adapter_model.safetensors")


if __name__ == "__main__":
    main()
