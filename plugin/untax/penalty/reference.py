"""theta_pre of parameters that are trained themselves: kept, or read again from the base's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.adapters.sharding import is_sharded, like, own_rows
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

    from untax.adapters.delta import Reference


class KeptBase:
    """A copy of every trained parameter as it is when it is first asked for: before training, and before sharding.

    It takes as much memory as these parameters once more, in their dtype and where they are; sharded, a rank keeps its
    own rows only.
    """

    def __init__(self) -> None:
        self._copies: dict[str, torch.Tensor] = {}
        self._first_rows: dict[str, int] = {}

    def __call__(self, name: str, parameter: torch.Tensor) -> Reference:
        """What reads rows of the copy.

        Raises:
            UntaxError: the parameter has no value yet.
        """
        if name not in self._copies:
            if parameter.is_meta:
                raise UntaxError(
                    f"The weights of {name} are not loaded on this rank when training begins.",
                    where="key fsdp_config: cpu_ram_efficient_loading",
                    fix="Set it to false: the penalty needs the pretrained weights of what is trained.",
                )
            self._copies[name], self._first_rows[name] = parameter.detach().clone(), 0
        elif is_sharded(parameter) and self._copies[name].shape == parameter.shape:
            rows, first = own_rows(like(self._copies[name].to(parameter.device), parameter))
            self._copies[name], self._first_rows[name] = rows.clone(), first
        copy, first = self._copies[name], self._first_rows[name]
        return lambda rows: copy[rows.start - first : rows.stop - first] if copy.ndim else copy
