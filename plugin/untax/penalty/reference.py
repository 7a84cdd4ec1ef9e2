"""theta_pre of parameters that are trained themselves: kept, or read again from the base's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from untax.adapters.base import StoredModel, local_folder
from untax.adapters.blocks import row_blocks
from untax.adapters.rows import read_rows
from untax.adapters.sharding import is_sharded, like, own_rows
from untax.adapters.statistics import FLOATING
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

    from untax.adapters.delta import Reference
    from untax.adapters.header import TensorInfo


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


class StoredBase:
    """The base's own files, read again by rows at every step: no memory, but a reading of all that is trained."""

    def __init__(self, model: str, revision: str | None = None):
        """Find the files.

        Args:
            model: a folder or hub id; that it was loaded means that it is on this machine.
            revision: of the hub id.

        Raises:
            UntaxError: there are no safetensors files.
        """
        folder = local_folder(model, revision)
        if folder is None:
            raise UntaxError(
                f"The files of {model} are not on this machine.", where="keys base_model, delta_base", fix=_KEEP
            )
        self._model = StoredModel(Path(folder))
        # As what the values were loaded: a delta must be zero before training, whatever the files' precision.
        self._dtypes: dict[str, torch.dtype] = {}

    def __call__(self, name: str, parameter: torch.Tensor) -> Reference:
        """What reads rows of the base's tensor. The first time it is compared with the parameter, before training.

        Raises:
            UntaxError: the base has no such tensor, or other values than the model that is trained.
        """
        tensor = self._model.find(name)
        if tensor is None or tensor.shape != tuple(parameter.shape) or tensor.dtype not in FLOATING:
            raise UntaxError(
                f"The base's files have no tensor {name} of real numbers with the shape {list(parameter.shape)}.",
                where=self._model.folder,
                fix=_KEEP,
            )
        if name not in self._dtypes:
            _compare(name, parameter, tensor)
        dtype = self._dtypes.setdefault(name, parameter.dtype)
        return lambda rows: read_rows(tensor, rows).to(dtype)


_KEEP = "Set `delta_base: keep`."


def _compare(name: str, parameter: torch.Tensor, tensor: TensorInfo) -> None:
    """Only the main process is sure to have loaded the values."""
    if int(os.environ.get("RANK", "0")):
        return
    table = parameter.detach().reshape(parameter.shape[0] if parameter.ndim else 1, -1)
    for rows in row_blocks(*table.shape):
        if not bool((read_rows(tensor, rows).reshape(table[rows].shape).to(table) == table[rows]).all()):
            raise UntaxError(
                f"The tensor {name} in the base's files is not what training begins with.",
                where=tensor.file,
                fix=_KEEP,
            )
