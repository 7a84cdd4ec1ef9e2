"""The factors of one layer of a merged adapter: those of all adapters stacked, or the best of a given rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from untax.adapters.rows import read_rows
from untax.adapters.stored import WEIGHTS_NAME, StoredAdapter, StoredLayer
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

    Factors = tuple[torch.Tensor, torch.Tensor]

Shape = tuple[int, ...]

INTO_A_MODEL = "Merge into a model instead, without --as-adapter."
_EMBEDDING = ".lora_embedding_A"


@dataclass(frozen=True)
class Share:
    """One adapter's part in one merged layer.

    Attributes:
        adapter: the adapter.
        coefficient: c_k.
        layer: its factors.
    """

    adapter: StoredAdapter
    coefficient: float
    layer: StoredLayer

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Of B, (out, r, ...), and of A, (r, in, ...)."""
        return self.adapter.tensors[self.layer.up].shape, self.adapter.tensors[self.layer.down].shape

    @property
    def is_embedding(self) -> bool:
        """Whether PEFT keeps these factors under the names that embeddings have."""
        return self.layer.down.endswith(_EMBEDDING)

    def read(self) -> Factors:
        """(B, c_k * s_k * A) in fp32."""
        up, down = (read_rows(self.adapter.tensors[key], slice(None)) for key in (self.layer.up, self.layer.down))
        return up.float(), down.float() * (self.coefficient * self.layer.scale)


@dataclass(frozen=True)
class CombinedLayer:
    """One layer of a merged adapter.

    Attributes:
        module: the layer's name in the base model.
        full_rank: the sum of the ranks of what was merged.
        rank: of the factors that were written.
        elements: how many numbers both factors have.
        norm: Frobenius norm of the exact delta D; None where nothing was to be cut.
        lost: Frobenius norm of (what was written - D); 0 where nothing was cut.
    """

    module: str
    full_rank: int
    rank: int
    elements: int
    norm: float | None = None
    lost: float = 0.0

    @property
    def error(self) -> float:
        """||D_R - D||_F / ||D||_F."""
        return self.lost / self.norm if self.lost and self.norm else 0.0


@dataclass(frozen=True)
class Combined:
    """A merged adapter.

    Attributes:
        layers: those with factors, in the order of the names.
        replaced: names of the tensors that stand in place of the base's: of ``modules_to_save``, and biases.
    """

    layers: tuple[CombinedLayer, ...]
    replaced: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of a layer: what a server must allow for."""
        return max(layer.rank for layer in self.layers)

    @property
    def elements(self) -> int:
        """How many numbers all factors have."""
        return sum(layer.elements for layer in self.layers)

    @property
    def error(self) -> float:
        """||D_R - D||_F / ||D||_F over all layers together; 0 where nothing was cut."""
        lost = math.hypot(*(layer.lost for layer in self.layers))
        return lost / math.hypot(*(layer.norm or 0.0 for layer in self.layers)) if lost else 0.0


def stacked_shapes(shares: Sequence[Share]) -> tuple[Shape, Shape]:
    """Shapes of the stacked factors, (out, sum of r_k, ...) and (sum of r_k, in, ...).

    Raises:
        UntaxError: they do not fit together.
    """
    first = shares[0]
    (rows, _, *rest), (_, *columns) = first.shapes
    for share in shares:
        (own_rows, _, *own_rest), (_, *own_columns) = share.shapes
        if (own_rows, own_rest, own_columns, share.is_embedding) != (rows, rest, columns, first.is_embedding):
            refuse_key(share.adapter, share.layer.down, f"does not fit its fellow in {first.adapter.folder}")
    full = sum(share.shapes[1][0] for share in shares)
    return (rows, full, *rest), (full, *columns)


def written_rank(shares: Sequence[Share], rank: int | None) -> int:
    """The rank of what ``combine`` returns: nothing is cut where R is as large as the sum of the ranks, or None.

    Raises:
        UntaxError: R is below 1, or the factors do not fit together.
    """
    if rank is not None and rank < 1:
        raise UntaxError(f"A rank of {rank} leaves nothing.", where="--rank", fix="Give a number of at least 1.")
    up, down = stacked_shapes(shares)
    return down[0] if rank is None or down[0] <= rank else min(rank, up[0], math.prod(down[1:]))


def combine(module: str, shares: Sequence[Share], rank: int | None) -> tuple[CombinedLayer, Factors]:
    """Factors of the sum of c_k * s_k * B_k @ A_k: B* = [B_1 ... B_K], A* = [c_1 s_1 A_1; ...; c_K s_K A_K].

    Args:
        module: the layer's name.
        shares: at least one.
        rank: R, to which a larger rank is cut; None to cut nothing.

    Returns:
        What became of the layer, and (B*, A*) in fp32.
    """
    import torch

    read = [share.read() for share in shares]
    up, down = torch.cat([up for up, _ in read], dim=1), torch.cat([down for _, down in read], dim=0)
    full, kept, norm, lost = down.shape[0], written_rank(shares, rank), None, 0.0
    if kept < full:
        (up, down), norm, lost = truncate(up, down, kept)
    elif rank is not None:
        norm = product_norm(up, down)
    return CombinedLayer(module, full, kept, up.numel() + down.numel(), norm, lost), (up, down)


def product_norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """||B @ A||_F without the product: the root of the trace of (B^T B) (A A^T), in float64."""
    up, down = up.flatten(1).double(), down.flatten(1).double()
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def truncate(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[Factors, float, float]:
    """The best approximation of B @ A by factors of a lower rank (Eckart-Young), without ever forming the product.

    With B = Q_B R_B and A^T = Q_A R_A, the singular values of B @ A are those of the small matrix R_B R_A^T.

    Args:
        up: B, shape (out, r, ...), where all but the first two dimensions are 1.
        down: A, shape (r, in, ...).
        rank: R, at most min(r, out, in).

    Returns:
        ((B*, A*) in fp32, shapes (out, R, ...) and (R, in, ...), ||B @ A||_F, ||B* @ A* - B @ A||_F before rounding).
        Each of both carries the square root of the singular values; the largest element of each column of B* is
        positive, so that the same delta gives the same factors.
    """
    import torch

    q_up, r_up = torch.linalg.qr(up.flatten(1).double())
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    left, sizes, right = torch.linalg.svd(r_up @ r_down.T)
    columns, rows = q_up @ left[:, :rank], right[:rank] @ q_down.T
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))
    roots = torch.where(largest < 0, -sizes[:rank].sqrt(), sizes[:rank].sqrt())
    new_up = (columns * roots).float().reshape(up.shape[0], rank, *up.shape[2:])
    new_down = (rows * roots.T).float().reshape(rank, *down.shape[1:])
    return (new_up, new_down), float(sizes.norm()), float(sizes[rank:].norm())


def refuse_key(adapter: StoredAdapter, key: str, problem: str) -> NoReturn:
    """Say what is wrong with a key of an adapter, and that a merge into a model takes it."""
    raise UntaxError(f"The key {key} {problem}.", where=adapter.folder / WEIGHTS_NAME, fix=INTO_A_MODEL)
