"""`untax sparsity` on an adapter of a 7B model's shape: time and memory of the whole command.

    python benchmarks/sparsity_scale.py --work /tmp/sparsity

makes the adapter (random bf16 factors, r = 16 on all linear layers, 80 MB) and writes benchmarks/results/sparsity.json.
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

HERE = Path(__file__).resolve().parent
HIDDEN, INTERMEDIATE, LAYERS, RANK = 4096, 11008, 32, 16
SHAPES = {
    **{f"self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"},
    **{f"mlp.{part}_proj": (INTERMEDIATE, HIDDEN) for part in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", default=HERE / "results" / "sparsity.json", type=Path)
    options = parser.parse_args()
    adapter = options.work / "adapter-7b"
    if not (adapter / "adapter_model.safetensors").exists():
        make(adapter)
    started = time.perf_counter()
    program = Path(sys.executable).parent / "untax"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(program), "sparsity", str(adapter), "--no-base"], check=True, env=environment)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "what": "untax sparsity on a LoRA adapter of Llama-7B's shape, r = 16, all linear layers, one thread",
        "command": "python benchmarks/sparsity_scale.py --work WORK",
        "layers": LAYERS * len(SHAPES),
        "elements": LAYERS * sum(rows * columns for rows, columns in SHAPES.values()),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_rss_mb": round(used.ru_maxrss / 1024),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def make(adapter: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator).mul_(1e-2).bfloat16()
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator).mul_(1e-3).bfloat16()
    adapter.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(SHAPES)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, adapter / "adapter_model.safetensors")


if __name__ == "__main__":
    main()
