"""mergekit YAMLs for every merge of the arms; ``mergekit-yaml`` runs those of stock methods as they are.

The papers name methods but give no weight, density or t for most of them; what is ours is marked so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from untax.recipes.axolotl_yaml import dump, heading

DENSITY = 0.5
GLOBAL_DENSITY = 0.2
OWN = ("fisher", "regmean", "ties_global", "dare_exact")
"""Methods of untax: plain ``mergekit-yaml`` knows them after ``untax mergekit enable``."""
UNSCALED = ("slerp", "nuslerp", "regmean")
"""Methods without a factor for the merged delta: their result is merged once more, as a whole model."""
Built = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True)
class Merge:
    """A merge of adapters of one base, or of whole models.

    Attributes:
        base: the base model.
        models: folders of the adapters; of the models where ``whole``.
        method: one of ``untax.recipes.arms.MERGES``.
        scale: what the merged delta is multiplied by.
        dtype: of the written weights; the arithmetic is in float32.
        density: the share of each delta that ties and dare keep; None is the default.
        weights: one for each model; None is equal ones.
        t: how far slerp and nuslerp go.
        statistics: for fisher and regmean the file of each model.
        whole: whether ``models`` are whole models and no adapters.
    """

    base: str
    models: Sequence[str]
    method: str
    scale: float
    dtype: str
    density: float | None = None
    weights: Sequence[float] | None = None
    t: float | None = None
    statistics: Sequence[str] = ()
    whole: bool = False


def render(merge: Merge, *, purpose: list[str], needs: str, command: str) -> str:
    """The YAML text."""
    keys, notes = _keys(merge)
    lines = heading([*purpose, *notes], needs, command)
    return "\n".join([*lines, ""]) + dump({**keys, "dtype": "float32", "out_dtype": merge.dtype})


def _keys(merge: Merge) -> Built:
    builders = {
        "average": _average,
        "linear": _average,
        "task_arithmetic": _task_arithmetic,
        "ties": _ties,
        "ties_global": _ties_global,
        "dare_ties": _dare,
        "dare_linear": _dare,
        "dare_exact": _dare,
        "slerp": _slerp,
        "nuslerp": _nuslerp,
        "fisher": _fisher,
        "regmean": _regmean,
    }
    return builders[merge.method](merge)


def _models(merge: Merge, *each: dict[str, Any]) -> list[dict[str, Any]]:
    """The models with the parameters of each; nothing for models without any."""
    parameters = each or ({},) * len(merge.models)
    names = [local(name) if merge.whole else f"{local(merge.base)}+{local(name)}" for name in merge.models]
    return [
        {"model": name, **({"parameters": own} if own else {})} for name, own in zip(names, parameters, strict=True)
    ]


def _weighted(merge: Merge, weight: float, **more: float) -> list[dict[str, Any]]:
    """The models with their weights, or ``weight`` each."""
    weights = merge.weights or [weight] * len(merge.models)
    return _models(merge, *({"weight": float(own), **more} for own in weights))


def _average(merge: Merge) -> Built:
    """A weighted sum of whole models; scaling the delta by x is giving the base the weight 1 - x.

    mergekit counts ``base_model`` among the models of ``linear``, so the base is listed, if only with weight 0.
    """
    weights = merge.weights or [1.0] * len(merge.models)
    shares = [merge.scale * weight / sum(weights) for weight in weights]
    base = {"model": local(merge.base), "parameters": {"weight": 1 - merge.scale}}
    keys = {
        "merge_method": "linear",
        "base_model": local(merge.base),
        "models": [base, *_models(merge, *({"weight": share} for share in shares))],
        "parameters": {"normalize": False},
    }
    origin = " (DTM equation 1)." if merge.method == "average" else " (ours)."
    equal = f"Equal weights 1/{len(merge.models)}{origin}"
    scaled = "" if merge.scale == 1 else f" Scaled by {merge.scale:g}: base + {merge.scale:g} * (average - base)."
    return keys, [
        (equal if merge.weights is None else "The recipe's weights, to a sum of 1.") + scaled,
        "mergekit counts the base among the models of linear, hence its own weight.",
    ]


def _task_arithmetic(merge: Merge) -> Built:
    equal = len(merge.models) > 1 and merge.weights is None
    notes = ["Deltas are added with weight 1 each (ours; the papers give no weights)."] if equal else []
    return _over_base(merge, "task_arithmetic", _weighted(merge, 1.0), normalize=False), notes + _scale_note(merge)


def _ties(merge: Merge) -> Built:
    models = _weighted(merge, 1.0, density=_density(merge))
    note = f"{_ours(merge)}; normalize is TIES's disjoint mean."
    return _over_base(merge, "ties", models, normalize=True), [note, *_scale_note(merge)]


def _ties_global(merge: Merge) -> Built:
    density = merge.density or GLOBAL_DENSITY
    models = _models(merge, *({"density": density} for _ in merge.models))
    notes = [
        "TIES as its paper has it: one threshold for a whole model, equal weights, and the largest 20% by default."
    ]
    return _over_base(merge, "ties_global", models), [*notes, *_scale_note(merge)]


def _dare(merge: Merge) -> Built:
    models = _weighted(merge, 1 / len(merge.models), density=_density(merge))
    note = f"{_ours(merge)}. The dropout is random: keep --random-seed to repeat it."
    return _over_base(merge, merge.method, models, normalize=False), [note, *_scale_note(merge)]


def _fisher(merge: Merge) -> Built:
    weights = [{}] * len(merge.models) if merge.weights is None else [{"weight": float(own)} for own in merge.weights]
    files = [{"fisher": local(file)} for file in merge.statistics]
    models = _models(merge, *({**file, **weight} for file, weight in zip(files, weights, strict=True)))
    notes = ["Each element is averaged by the models' Fisher information (Matena and Raffel; DTM table 4)."]
    return _over_base(merge, "fisher", models), [*notes, *_scale_note(merge)]


def _regmean(merge: Merge) -> Built:
    keys = {
        "merge_method": "regmean",
        "base_model": local(merge.base),
        "models": _models(merge, *({"gram": local(file)} for file in merge.statistics)),
        "parameters": {"shrink": 0.9},
    }
    return keys, ["shrink 0.9 is what RegMean's released configurations use."]


def _slerp(merge: Merge) -> Built:
    """Spherical interpolation of two full models; ``scale`` has no place in it."""
    models, t = _models(merge), 0.5 if merge.t is None else merge.t
    keys = {"merge_method": "slerp", "base_model": models[0]["model"], "models": models, "parameters": {"t": t}}
    return keys, ["t 0.5, halfway, is ours."] if merge.t is None else []


def _nuslerp(merge: Merge) -> Built:
    """Spherical interpolation of two deltas."""
    t = 0.5 if merge.t is None else merge.t
    keys = {
        "merge_method": "nuslerp",
        "base_model": local(merge.base),
        "models": _models(merge, {"weight": 1 - t}, {"weight": t}),
    }
    return keys, ["Halfway is ours."] if merge.t is None else []


def _over_base(merge: Merge, method: str, models: list[dict[str, Any]], **parameters: bool) -> dict[str, Any]:
    """A merge of deltas with a factor for their sum."""
    return {
        "merge_method": method,
        "base_model": local(merge.base),
        "models": models,
        "parameters": {**parameters, "lambda": merge.scale},
    }


def _density(merge: Merge) -> float:
    return DENSITY if merge.density is None else merge.density


def _ours(merge: Merge) -> str:
    """Which settings are the recipe's and which are ours, for no paper gives any."""
    density = f"density {_density(merge):g}" + (" is the recipe's" if merge.density is not None else "")
    weights = "equal weights" if merge.weights is None else "the weights are the recipe's"
    if merge.density is None and merge.weights is None:
        return f"{density} and {weights} are ours"
    return f"{density}, {weights}"


def _scale_note(merge: Merge) -> list[str]:
    return [] if merge.scale == 1 else [f"The merged delta is scaled by {merge.scale:g} (lambda)."]


def local(path: str) -> str:
    """A path as mergekit takes it for one: it looks up on the hub what has the form of a hub id."""
    return f"./{path}" if path.startswith("outputs/") else path
