"""Parameters that several ranks share (FSDP2 keeps each as a DTensor, divided by rows), and those that none do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a DTensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor without a graph; every rank must ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(this rank's rows, which share the tensor's storage; the index of the first of them), without a graph.

    Raises:
        UntaxError: the tensor is divided otherwise than once by rows.
    """
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor, 0
    shared: DTensor = tensor
    dims = [dim for dim, placement in enumerate(shared.placements) if not placement.is_replicate()]
    if not dims:
        return shared.to_local(), 0
    placement = shared.placements[dims[0]]
    if len(dims) > 1 or type(placement).__name__ != "Shard" or not placement.is_shard(0):
        raise UntaxError(
            f"A parameter is divided over the ranks as {shared.placements}, and the penalty knows rows only.",
            where="keys fsdp_config, tensor_parallel_size",
            fix="Use FSDP2 or DDP without tensor parallelism, or leave the delta_* keys out.",
        )
    # As torch.chunk divides: all ranks but the last ones have the same number of rows.
    chunk = -(-shared.shape[0] // shared.device_mesh.size(dims[0]))
    first = min(shared.device_mesh.get_local_rank(dims[0]) * chunk, shared.shape[0])
    return shared.to_local(), first


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``tensor``, which every rank has whole, divided as ``parameter`` is; nothing is sent."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shared: DTensor = parameter
    return distribute_tensor(tensor, shared.device_mesh, shared.placements, src_data_rank=None)


def over_ranks(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The sum of a scalar that each rank took over its own rows of ``parameter``; every rank must ask for it."""
    if not is_sharded(parameter):
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    shared: DTensor = parameter
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in shared.placements]
    return DTensor.from_local(value, shared.device_mesh, placements, run_check=False).full_tensor()
