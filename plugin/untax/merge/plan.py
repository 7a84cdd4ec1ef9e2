"""Whether a merge can be streamed, and if so, what it does to which tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.adapters.base import StoredModel
from untax.adapters.changes import read_changes
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.merge.config_file import MergeConfig
from untax.merge.deltas import TensorDeltas, opener, stored_rows
from untax.merge.method import Method, Values
from untax.merge.methods.linear import weight_sum
from untax.merge.options import Options
from untax.merge.references import Reference, Source, read_reference
from untax.merge.settings import Settings, has_gradients, layer_count, refuse_slip
from untax.merge.shards import DTYPES, WIDTHS, Shard, lay_out
from untax.merge.stream import AHEAD, Stream
from untax.merge.tensor_job import TensorJob
from untax.plugins import registry

if TYPE_CHECKING:
    from untax.merge.deltas import Opened

_KEYS = {"merge_method", "models", "base_model", "dtype", "out_dtype", "parameters"}
# mergekit's task_arithmetic knows these and does nothing with them.
_WITHOUT_EFFECT = ("density", "rescale")
_MERGEKIT_KEYS = {"slices", "modules", "tokenizer_source", "tokenizer", "chat_template"}


@dataclass(frozen=True)
class Plan:
    """A merge over one base.

    Attributes:
        method: how.
        source: the base, as the YAML names it.
        base: the base.
        models: the K models, each the base with or without an adapter.
        settings: the parameters.
        dtype: of the output's floating tensors, as safetensors spells it; None: as the base has them.
    """

    method: Method
    source: Source
    base: StoredModel
    models: tuple[Reference, ...]
    settings: Settings
    dtype: str | None

    def shards(self, limit: int | None) -> list[Shard]:
        """The output's files."""
        return lay_out(self.base, self.dtype, limit)

    def stream(self, shards: Sequence[Shard], *, seed: int, scales: Sequence[float], threads: int) -> Stream:
        """The merge, ready to run; adapters are opened here.

        Raises:
            UntaxError: an adapter does not fit the base, a parameter is wrong, or a file of statistics is.
        """
        # Of each tensor that is merged, or whose statistics are computed ahead.
        jobs = self._jobs(opener(len(self.models) * (threads + AHEAD + 1)), seed, scales)
        order = [tensor.name for shard in shards for tensor in shard.tensors if tensor.name in jobs]
        if self.method.whole is not None:
            whole = self.method.whole(jobs[name].as_job() for name in order)
            jobs = {name: dataclasses.replace(job, whole=whole) for name, job in jobs.items()}
        return Stream(shards, jobs, scales, threads)

    def _jobs(
        self, opened: Callable[[Any], Opened], seed: int = 0, scales: Sequence[float] = (1.0,)
    ) -> dict[str, TensorJob]:
        """The tensors that change, by name."""
        changes = [self._changes(reference) for reference in self.models]
        jobs = {}
        for name, info in self.base.tensors.items():
            mine = [found.get(name) for found in changes]
            values = self.settings.values(name)
            if info.dtype in WIDTHS and (any(mine) or self._factor(values) != 1):
                deltas = TensorDeltas(name, info.shape, mine, stored_rows(info), opened)
                jobs[name] = TensorJob(self.method, deltas, values, seed, scales)
        if self.method.check is not None:
            self.method.check([job.as_job() for job in jobs.values()])
        return jobs

    def check(self) -> None:
        """Resolve every parameter of every tensor, so that nothing is written where one is wrong.

        Raises:
            UntaxError: a parameter is missing or of another kind, weights that are to be normalised sum to 0, or a file
                of statistics is missing or of another model.
        """
        every = [self.settings.values(name) for name in self.base.tensors]
        weights = [values["weight"] for values in every if values.get("normalize") and "weight" in values]
        # Where all weights are 0, `ties` leaves a tensor as it is: that may be meant, but not everywhere.
        for own in [one for one in weights if any(one)] or weights:
            weight_sum(own, where=self.settings.where)
        for values in every:
            self._factor(values)
        if self.method.check is not None:
            self._jobs(opener(1))

    def remarks(self) -> list[str]:
        """What is as the YAML says, and hardly as it is meant."""
        found = []
        factors = {self._factor(self.settings.values(name)) for name in self.base.tensors}
        if factors != {1.0}:
            listed = ", ".join(f"{factor:g}" for factor in sorted(factors)[:3])
            found.append(
                f"the weights sum to {listed} and are not normalised: the base's weights are multiplied by that."
            )
        if self.method.coefficients is not None:
            given = {*self.settings.shared}.union(*self.settings.models)
            ignored = [key for key in _WITHOUT_EFFECT if key in given and self.method.has(key)]
            found += [f"{key} has no effect on {self.method.name}." for key in ignored]
        return found

    def changed(self) -> set[str]:
        """Names of the tensors that any adapter changes."""
        return set().union(*(self._changes(reference) for reference in self.models))

    def adapters(self) -> list[StoredAdapter | None]:
        """The adapter of each model."""
        return [StoredAdapter(one.adapter.folder) if one.adapter else None for one in self.models]

    def _changes(self, reference: Reference) -> dict[str, Any]:
        return {} if reference.adapter is None else read_changes(StoredAdapter(reference.adapter.folder), self.base)

    def _factor(self, values: Values) -> float:
        return 1.0 if self.method.coefficients is None else self.method.coefficients(values)[1]


def why_mergekit(config: MergeConfig, options: Options) -> str | None:
    """Why a merge needs mergekit itself; None when it can be streamed."""
    name = config.raw.get("merge_method")
    methods = registry("merge_methods")
    if name not in methods:
        return f"merge_method {name}"
    for key in sorted(_MERGEKIT_KEYS):
        if config.raw.get(key):
            return f"the key {key}"
    if options["unsafe_truncate_embeddings"]:
        return "--unsafe-truncate-embeddings"
    if options.on_gpu:
        return "arithmetic on an accelerator"
    if not isinstance(config.raw.get("models"), list):
        return "a configuration without models"
    return _unlike_models(config, methods[name]) or _unlike_numbers(config)


def _unlike_models(config: MergeConfig, method: Method) -> str | None:
    if len({reference.base.place for reference in config.references}) > 1:
        return "models of more than one base"
    if any("override_architecture" in str(value) for value in config.raw["models"]):
        return "override_architecture"
    base = config.raw.get("base_model")
    if base is None and method.name == "nuslerp":
        return "nuslerp without base_model"
    if base is not None and not method.base_is_model and read_reference(base, where=config.path).adapter is not None:
        return "a base_model with an adapter"
    return None


def _unlike_numbers(config: MergeConfig) -> str | None:
    base = StoredModel(config.references[0].base.folder)
    if "float64" in (config.raw.get("dtype"), config.raw.get("out_dtype")) or any(
        info.dtype == "F64" for info in base.tensors.values()
    ):
        return "float64"
    given = [entry.get("parameters") for entry in (*config.raw["models"], config.raw) if isinstance(entry, dict)]
    gradients = has_gradients(one for one in given if isinstance(one, dict))
    if gradients and (layer_count(base.config) is None or "text_config" in base.config):
        return "gradients over the layers of a model that does not say how many it has"
    return None


def make_plan(config: MergeConfig) -> Plan:
    """The plan of a merge for which ``why_mergekit`` knows no reason.

    Raises:
        UntaxError: the configuration is wrong; every key that is, is named.
    """
    method: Method = registry("merge_methods")[config.raw["merge_method"]]
    base = StoredModel(config.references[0].base.folder)
    if method.base and config.raw.get("base_model") is None:
        raise UntaxError(
            f"{method.name} needs a base_model.",
            where=config.path,
            fix=f"Write `base_model: {config.references[0].text if method.base_is_model else base.folder}`.",
        )
    models, given = _models(config, method)
    if method.models is not None and len(models) != method.models:
        raise UntaxError(
            f"{method.name} merges {method.models} models, but here are {len(models)}: {', '.join(_texts(models))}.",
            where=f"{config.path}, key models",
            fix="base_model is one of them." if method.base_is_model else "base_model does not count.",
        )
    shared = _mapping(config.raw.get("parameters"), f"{config.path}, key parameters")
    settings = Settings(method, given, _names(config, models), shared, layer_count(base.config), config.path)
    return Plan(method, config.references[0].base, base, models, settings, _output_dtype(config))


def _models(config: MergeConfig, method: Method) -> tuple[tuple[Reference, ...], tuple[dict[str, Any], ...]]:
    """The K models with what is given for each."""
    where = f"{config.path}, key models"
    found = {}
    for entry in config.raw["models"]:
        if not isinstance(entry, dict) or "model" not in entry:
            raise UntaxError(f"An entry is {entry!r}.", where=where, fix="Write `- model: base+adapter`.")
        reference = read_reference(entry["model"], where=config.path)
        if reference in found:
            raise UntaxError(
                f"{reference.text} is listed twice.", where=where, fix="List it once, with both weights added up."
            )
        found[reference] = _mapping(entry.get("parameters"), where)
    base = config.raw.get("base_model")
    if base is not None:
        reference = read_reference(base, where=config.path)
        own = found.pop(reference, {})
        if method.base_is_model:
            found = {reference: own, **found}
    return tuple(found), tuple(found.values())


def _texts(models: tuple[Reference, ...]) -> list[str]:
    return [one.text for one in models]


def _names(config: MergeConfig, models: tuple[Reference, ...]) -> tuple[str, ...]:
    base = config.raw.get("base_model")
    own = None if base is None else read_reference(base, where=config.path)
    return tuple(f"base_model {one.text}" if one == own else one.text for one in models)


def _mapping(value: Any, where: object) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UntaxError(f"The parameters are {value!r}.", where=where, fix="Write a mapping of keys.")
    return value or {}


def _output_dtype(config: MergeConfig) -> str | None:
    wanted = config.raw.get("out_dtype") or config.raw.get("dtype")
    if wanted is None:
        return None
    if str(wanted).removeprefix("torch.") not in DTYPES:
        raise UntaxError(
            f"The dtype {wanted!r} is none of {', '.join(DTYPES)}.", where=config.path, fix="Use one of these."
        )
    return DTYPES[str(wanted).removeprefix("torch.")]


def unknown_keys(config: MergeConfig) -> list[str]:
    """A sentence for each key at the top of the YAML that nobody reads.

    Raises:
        UntaxError: a key is a slip of the pen.
    """
    known = sorted(_KEYS | _MERGEKIT_KEYS)
    unknown = sorted(map(str, {*config.raw} - {*known}))
    for key in unknown:
        refuse_slip(key, known, f"Nobody reads the key {key}.", where=config.path)
    return [f"nobody reads the key {key} of {config.path}." for key in unknown]
