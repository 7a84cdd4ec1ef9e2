"""Several stored LoRA adapters of one base: whether they belong together, and their layers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import combinations
from pathlib import Path

from untax.adapters.base import shape_text
from untax.adapters.interference import TOP, Factors, LayerInterference, measure_layer
from untax.adapters.lora_deltas import AdapterDeltas
from untax.adapters.sparsity import Advance
from untax.adapters.stored import WEIGHTS_NAME, StoredAdapter, StoredLayer
from untax.errors import UntaxError
from untax.manifest import read_manifest


class AdapterSet:
    """Several LoRA adapters of one base, ready to be measured together.

    Attributes:
        adapters: what each one is.
        notes: what speaks against comparing them, in sentences.
    """

    def __init__(self, folders: Sequence[Path]):
        """Open and check all of them; no delta is computed.

        Raises:
            UntaxError: there are fewer than two; one is no plain LoRA adapter, or has NaN or infinity; two are the
                same; or they are of different bases, by the shapes of their deltas or the digests in their manifests.
        """
        if len(folders) < 2:
            raise UntaxError(
                "One adapter has no other to interfere with.",
                where=folders[0] if folders else None,
                fix="Name two or more.",
            )
        self._stored = [StoredAdapter(folder) for folder in folders]
        self.adapters = [_plain(adapter) for adapter in self._stored]
        _refuse_repeated(self.adapters)
        self._layers: dict[str, dict[int, StoredLayer]] = {}
        for number, adapter in enumerate(self._stored):
            for layer in adapter.layers:
                self._layers.setdefault(layer.tensor, {})[number] = layer
        self._check_shapes()
        self.notes = _compare_bases(self._stored)

    @cached_property
    def elements(self) -> int:
        """How many elements the deltas of all adapters have."""
        return sum(adapter.elements for adapter in self.adapters)

    def measure(self, top: float = TOP, advance: Advance = lambda elements: None) -> tuple[LayerInterference, ...]:
        """Every layer that any adapter has, in the order of their names with numbers counted up.

        Args:
            top: the share of a layer's elements that counts as its largest; at least one element does.
            advance: called with a layer's number of elements, of all its adapters together.

        Raises:
            UntaxError: a product overflows.
        """
        from safetensors import safe_open

        with ExitStack() as opened:
            files = [
                opened.enter_context(safe_open(adapter.folder / WEIGHTS_NAME, framework="pt"))
                for adapter in self._stored
            ]
            measured = []
            for tensor in sorted(self._layers, key=_by_number):
                layers = self._layers[tensor]
                factors = {
                    number: Factors(
                        files[number].get_tensor(layer.up), files[number].get_tensor(layer.down), layer.scale
                    )
                    for number, layer in layers.items()
                }
                module = next(iter(layers.values())).module
                measured.append(measure_layer(module, factors, len(files), top, where=self._where(layers, module)))
                advance(measured[-1].elements * len(layers))
        return tuple(measured)

    def _where(self, layers: dict[int, StoredLayer], module: str) -> str:
        return f"{module} of {', '.join(str(self._stored[number].folder) for number in layers)}"

    def _check_shapes(self) -> None:
        for tensor, layers in self._layers.items():
            shapes = {number: self._shape(number, layer) for number, layer in layers.items()}
            first = next(iter(shapes))
            for number, shape in shapes.items():
                if shape != shapes[first]:
                    raise UntaxError(
                        f"The adapters are of different bases: {tensor} is {shape_text(shape)} here and "
                        f"{shape_text(shapes[first])} in {self._stored[first].folder}.",
                        where=self._stored[number].folder,
                        fix="Name adapters of one base.",
                    )

    def _shape(self, number: int, layer: StoredLayer) -> tuple[int, int]:
        """(out, in), however the base stores it."""
        tensors = self._stored[number].tensors
        return tensors[layer.up].shape[0], tensors[layer.down].shape[1]


def _plain(adapter: StoredAdapter) -> AdapterDeltas:
    try:
        return AdapterDeltas(adapter)
    except UntaxError as error:
        raise UntaxError(error.problem, where=error.where, fix="Leave it out, or train plain LoRA again.") from error


def _refuse_repeated(adapters: Sequence[AdapterDeltas]) -> None:
    seen: dict[str, AdapterDeltas] = {}
    for adapter in adapters:
        first = seen.setdefault(adapter.identity, adapter)
        if first is not adapter:
            raise UntaxError(
                f"Two of the adapters are the same: {first.folder}, {adapter.folder}.",
                where=adapter.folder,
                fix="Name each adapter once.",
            )


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _compare_bases(adapters: Sequence[StoredAdapter]) -> list[str]:
    """What names alone say against one base, in sentences.

    Raises:
        UntaxError: the digests of the bases in two manifests differ.
    """
    recorded = [_recorded_base(adapter.folder) for adapter in adapters]
    names = [str(adapter.config.get("base_model_name_or_path") or "") for adapter in adapters]
    doubtful: list[int] = []
    for one, other in combinations(range(len(adapters)), 2):
        first, second = recorded[one], recorded[other]
        if first is not None and second is not None and _comparable(first, second):
            if first != second:
                raise UntaxError(
                    f"The adapters are of different bases: {names[other] or second} here, and "
                    f"{names[one] or first} for {adapters[one].folder}.",
                    where=adapters[other].folder,
                    fix="Name adapters of one base.",
                )
        elif names[one] and names[other] and Path(names[one]).name.lower() != Path(names[other]).name.lower():
            doubtful += [one, other]
    if not doubtful:
        return []
    said = ", ".join(f"{adapters[number].folder} on {names[number]}" for number in sorted(set(doubtful)))
    return [f"Trained on {said}: if these are different models, the numbers mean nothing."]


def _recorded_base(folder: Path) -> str | None:
    recorded = (read_manifest(folder) or {}).get("inputs", {}).get("base")
    return recorded if isinstance(recorded, str) else None


def _comparable(one: str, other: str) -> bool:
    """Two contents can be compared, and two known commits; a commit with a content cannot."""
    return one.startswith("hub:") == other.startswith("hub:") and "@unknown" not in one + other
