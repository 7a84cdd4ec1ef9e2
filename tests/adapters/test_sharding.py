"""Parameters divided over two ranks on gloo, against slices of the whole tensor taken by hand.

This file is also the program that each rank runs: starting a pair of processes takes most of the time, so one pair runs
all checks and writes down how each one ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penalty.ranks import start_ranks
from untax.adapters.delta import LowRankDelta, ParameterDelta
from untax.adapters.norms import delta_norms
from untax.adapters.sharding import is_sharded, like, over_ranks, own_rows, whole
from untax.errors import UntaxError
from untax.penalty.reference import KeptBase

ROWS = (6, 5, 2, 1)
"""Over two ranks: 3 and 3, 3 and 2, 1 and 1, 1 and none."""
HSDP = ((1, 2), (2, 1))


def numbers(rows: int, columns: int = 4) -> torch.Tensor:
    return torch.arange(1.0, rows * columns + 1).reshape(rows, columns)


def mesh(*shape: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape or (2,), mesh_dim_names=("replicate", "shard")[-len(shape or (2,)) :])


def divided(tensor: torch.Tensor, over: Any, *placements: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.clone(), over, placements)


def parameter(tensor: torch.Tensor, over: Any, *placements: Any) -> Any:
    return torch.nn.Parameter(divided(tensor, over, *placements))


def share(rows: int, rank: int, ranks: int = 2) -> slice:
    """As torch.chunk divides: ceil(rows / ranks) each, as long as there are any."""
    chunk = (rows + ranks - 1) // ranks
    return slice(min(rank * chunk, rows), min((rank + 1) * chunk, rows))


def check_rows_of_a_sharded_tensor(rank: int) -> None:
    from torch.distributed.tensor import Shard

    for rows in ROWS:
        tensor = divided(numbers(rows), mesh(), Shard(0))
        own, first = own_rows(tensor)
        expected = share(rows, rank)
        assert first == expected.start
        assert torch.equal(own, numbers(rows)[expected])
        assert torch.equal(whole(tensor), numbers(rows))
        own.mul_(2)  # They are the tensor's own storage.
        assert torch.equal(whole(tensor), 2 * numbers(rows))


def check_like_divides_what_every_rank_has(rank: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    for rows in ROWS:
        for placement in (Shard(0), Replicate()):
            pattern = divided(torch.zeros(rows, 4), mesh(), placement)
            found = like(numbers(rows), pattern)
            assert found.placements == pattern.placements
            assert torch.equal(found.to_local(), pattern.to_local() + own_rows(found)[0])
            assert torch.equal(whole(found), numbers(rows))


def check_a_replicated_tensor_is_whole(rank: int) -> None:
    from torch.distributed.tensor import Replicate

    tensor = divided(numbers(5), mesh(), Replicate())
    own, first = own_rows(tensor)
    assert first == 0
    assert torch.equal(own, numbers(5))
    assert over_ranks(torch.tensor(3.0), tensor).item() == 3


def check_sums_over_ranks(rank: int) -> None:
    from torch.distributed.tensor import Shard

    tensor = divided(numbers(5), mesh(), Shard(0))
    assert over_ranks(torch.tensor(rank + 1.0, dtype=torch.float64), tensor).item() == 3
    assert over_ranks(torch.tensor([1.0, rank]), tensor).tolist() == [2, 1]


def check_two_dimensions_of_ranks(rank: int) -> None:
    """HSDP: replicated over the first, divided over the second."""
    from torch.distributed.tensor import Replicate, Shard

    for shape in HSDP:
        for rows in ROWS:
            tensor = divided(numbers(rows), mesh(*shape), Replicate(), Shard(0))
            expected = share(rows, rank, 2) if shape[1] == 2 else slice(0, rows)
            own, first = own_rows(tensor)
            assert first == expected.start
            assert torch.equal(own, numbers(rows)[expected])
            assert torch.equal(own_rows(like(numbers(rows), tensor))[0], own)
            assert over_ranks(own.sum(dtype=torch.float64), tensor).item() == numbers(rows).sum().item()


def check_other_divisions_are_refused(rank: int) -> None:
    from torch.distributed.tensor import Shard

    for tensor in (
        divided(numbers(4), mesh(), Shard(1)),
        divided(numbers(4), mesh(1, 2), Shard(0), Shard(0)),
        divided(numbers(4), mesh(1, 2), Shard(0), Shard(1)),
    ):
        with pytest.raises(UntaxError, match="rows only") as caught:
            own_rows(tensor)
        assert "fsdp_config" in str(caught.value.where)


def check_plain_tensors_are_every_ranks_own(rank: int) -> None:
    tensor = numbers(3).requires_grad_()
    own, first = own_rows(tensor)
    assert (first, own.requires_grad, is_sharded(tensor)) == (0, False, False)
    assert own.data_ptr() == whole(tensor).data_ptr() == tensor.data_ptr()
    assert like(tensor, tensor) is tensor
    assert over_ranks(torch.tensor(rank), tensor).item() == rank


def check_gradients_of_a_divided_parameter(rank: int) -> None:
    """theta - theta_pre, with and without a gradient before, and with ranks that have no row."""
    from torch.distributed.tensor import Shard

    for rows in ROWS:
        for already in (False, True):
            theta = parameter(numbers(rows), mesh(), Shard(0))
            if already:
                theta.grad = divided(torch.ones(rows, 4), mesh(), Shard(0))
            delta = ParameterDelta("w", theta, lambda own: torch.full((own.stop - own.start, 4), 2.0))
            delta.add_gradient(lambda own, block: block * own.start, 0.5)
            first_rows = torch.tensor([[share(rows, rank_of(row, rows)).start] for row in range(rows)])
            expected = 0.5 * (numbers(rows) - 2) * first_rows + already
            assert torch.equal(whole(theta.grad), expected)
            assert delta.shape == (rows, 4)
            norms = delta_norms([delta])
            assert norms.l1 == (numbers(rows) - 2).abs().sum().item()
            assert norms.zeros == ((numbers(rows) - 2) == 0).double().mean().item()


def check_gradients_of_divided_factors(rank: int) -> None:
    """s * B @ A of factors with fewer rows than ranks among them, against autograd in float64."""
    from torch.distributed.tensor import Shard

    for out, inner in ((5, 1), (1, 3), (6, 2)):
        b, a = numbers(out, inner) - 3, 4 - numbers(inner, 4)
        low_rank = [parameter(tensor, mesh(), Shard(0)) for tensor in (a, b)]
        LowRankDelta("w", *low_rank, scale=2.0).add_gradient(lambda _, block: block.sign(), 0.25)
        leaves = [tensor.double().requires_grad_() for tensor in (a, b)]
        (0.25 * (2.0 * leaves[1] @ leaves[0]).abs().sum()).backward()
        for found, leaf in zip(low_rank, leaves, strict=True):
            assert torch.equal(whole(found.grad).double(), leaf.grad)
        assert delta_norms([LowRankDelta("w", *low_rank, scale=2.0)]).l1 == (2.0 * b @ a).abs().sum().item()


def check_a_rank_keeps_its_own_rows_of_the_base(rank: int) -> None:
    """The copy is taken of the whole parameter, and cut when the parameter has been divided."""
    from torch.distributed.tensor import Shard

    for rows in ROWS:
        kept = KeptBase()
        assert torch.equal(kept("w", torch.nn.Parameter(numbers(rows)))(slice(0, rows)), numbers(rows))
        own = share(rows, rank)
        for _ in range(2):
            found = kept("w", parameter(numbers(rows) + 1, mesh(), Shard(0)))(own)
            assert torch.equal(found, numbers(rows)[own])
            assert found.untyped_storage().nbytes() == 4 * found.numel()


def rank_of(row: int, rows: int) -> int:
    return 0 if row < share(rows, 0).stop else 1


CHECKS: dict[str, Callable[[int], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """{check: its traceback, or nothing} of each rank."""
    folder = tmp_path_factory.mktemp("sharding")
    start_ranks(Path(__file__), str(folder), folder=folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(ends: list[dict[str, str]], name: str) -> None:
    problems = "\n".join(end[name] for end in ends)
    assert not problems.strip(), problems


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank, ends = torch.distributed.get_rank(), {}
    for name, check in CHECKS.items():
        try:
            check(rank)
            ends[name] = ""
        except Exception:
            ends[name] = traceback.format_exc()
            break  # The other rank would wait for this one.
    (folder / f"{rank}.json").write_text(json.dumps({**dict.fromkeys(CHECKS, "not reached"), **ends}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    main(Path(sys.argv[1]))
