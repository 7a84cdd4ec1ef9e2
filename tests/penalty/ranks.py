"""What each of several ranks runs: trainings of the real Axolotl one after another, with every optimizer step recorded.

Started as ``python ranks.py PLAN.json`` with the environment that torchrun gives. A plan is a list of trainings, each
``{"config": a YAML, "records": a folder, "port": of its process group}``. Accelerate takes FSDP for GPUs only, so two
switches are set here for a CPU; Axolotl, the trainer, ``fully_shard`` and the plugin are the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
MOMENTS = ("weights", "before", "gradient")


def start_ranks(program: Path, *arguments: str, folder: Path, count: int = 2, seconds: int = 900) -> None:
    """Run a program on every rank, as ``torchrun`` does.

    Raises:
        AssertionError: a rank failed or took too long, with the ends of what they printed.
    """
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        # Axolotl's copy of stdout waits for ever when a process closes it for the second time.
        "AXOLOTL_TEE_STDOUT": "0",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            cwd=folder,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    started = time.monotonic()
    # A rank that has failed leaves the others waiting for it.
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        if time.monotonic() - started > seconds:
            break
        time.sleep(0.1)
    for rank in ranks:
        rank.kill()
    ends = [rank.wait() for rank in ranks]
    assert ends == [0] * count, "\n\n".join(log.read_text()[-4000:] for log in logs)


def free_port() -> int:
    """Below those that the system gives to connections, so that it is still free when a later training needs it."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


def keep_records(folder: Path, trainer: Any, record: Any) -> dict[str, Any]:
    """Write each step's whole tensors and those at the end, while there still is a process group to gather them."""
    from penalty.recording import trainable

    rank = os.environ["RANK"]
    for index, step in enumerate(record.steps):
        moments = {f"{moment}/{name}": t for moment in MOMENTS for name, t in vars(step)[moment].items()}
        batches = {f"batch/{number}/{key}": t for number, batch in enumerate(step.batches) for key, t in batch.items()}
        save(folder / f"step{index}.{rank}", moments | batches)
    end = trainable(trainer.model)
    save(folder / f"end.{rank}", {f"weights/{name}": tensor for name, tensor in end.items()})
    return {"logs": record.losses(), "division": sorted({division(parameter) for parameter in end.values()})}


def save(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    whole = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in tensors.items()}
    save_file({key.replace("_checkpoint_wrapped_module.", ""): t.contiguous() for key, t in whole.items()}, path)


def division(parameter: Any) -> str:
    """How a parameter lies on the ranks."""
    if not hasattr(parameter, "placements"):
        return "whole on every rank"
    return f"{parameter.placements} {'uneven' if parameter.shape[0] % parameter.device_mesh.size() else 'even'}"


def share_cpus() -> None:
    """Make accelerate divide the work over CPUs, as it does over GPUs; without this every rank trains for itself."""
    import torch
    from accelerate.state import PartialState
    from axolotl.loaders.model import ModelLoader

    begin, place = PartialState.__init__, ModelLoader._set_device_map_config

    def on_cpu(self: Any, cpu: bool = False, **kwargs: Any) -> None:
        begin(self, cpu=True, **kwargs)

    def model_on_cpu(self: Any) -> None:
        place(self)
        # Axolotl names the rank's accelerator, even where there is none.
        if self.model_kwargs.get("device_map"):
            self.model_kwargs["device_map"] = "cpu"

    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.cuda.can_device_access_peer = lambda *_: False  # Axolotl asks, and a torch for GPUs without a driver fails.
    PartialState.__init__ = on_cpu
    ModelLoader._set_device_map_config = model_on_cpu


def allow_fsdp_on_cpu() -> None:
    """Do for several CPUs what accelerate does for several GPUs when the configuration asks for FSDP."""
    from accelerate import ParallelismConfig
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin, build = AcceleratorState.__init__, ParallelismConfig.build_device_mesh

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp
    ParallelismConfig.build_device_mesh = lambda self, device_type: build(self, "cpu")


def train(config: str, folder: Path) -> None:
    from unittest import mock

    from axolotl.cli.train import do_cli
    from transformers import Trainer

    from penalty.recording import recorded
    from untax.training.plugin import UntaxPlugin

    found: dict[str, Any] = {}
    inner = Trainer.train
    with recorded() as record:

        def whole_training(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = inner(self, *args, **kwargs)
            found.update(keep_records(folder, self, record))
            return result

        with mock.patch.object(Trainer, "train", whole_training):
            do_cli(config=config)
    found["wrote the manifest"] = UntaxPlugin.record().written
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


def main(plan: Path) -> None:
    from accelerate.state import PartialState
    from axolotl.utils import distributed

    from toys import fresh_axolotl

    share_cpus()
    allow_fsdp_on_cpu()
    for training in json.loads(plan.read_text()):
        with fresh_axolotl():
            os.environ["MASTER_PORT"] = str(training["port"])
            train(training["config"], Path(training["records"]))
        PartialState._reset_state()
        distributed.distributed_state = None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
