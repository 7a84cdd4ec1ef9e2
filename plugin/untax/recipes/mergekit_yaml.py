"""mergekit YAMLs for every merge of the arms, all of stock methods: ``mergekit-yaml`` runs them as they are.

The papers name methods but give no weight, density or t for most of them; what is ours is marked so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from untax.recipes.axolotl_yaml import dump

DENSITY = 0.5
Built = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True)
class Merge:
    """A merge of adapters of one base.

    Attributes:
        base: the base model.
        adapters: folders of the adapters.
        method: ``average``, ``linear``, ``task_arithmetic``, ``ties``, ``dare_ties``, ``dare_linear`` or ``slerp``.
        scale: what the merged delta is multiplied by.
        dtype: of the written weights; the arithmetic is in float32.
    """

    base: str
    adapters: Sequence[str]
    method: str
    scale: float
    dtype: str


def render(merge: Merge, *, purpose: list[str], needs: str, command: str) -> str:
    """The YAML text."""
    keys, notes = _keys(merge)
    lines = [*(f"# {line}" for line in [*purpose, *notes]), f"# Needs: {needs}", f"# Run:   {command}", ""]
    return "\n".join(lines) + dump({**keys, "dtype": "float32", "out_dtype": merge.dtype})


def _keys(merge: Merge) -> Built:
    builders = {
        "average": _average,
        "linear": _average,
        "task_arithmetic": _task_arithmetic,
        "ties": _ties,
        "dare_ties": _dare,
        "dare_linear": _dare,
        "slerp": _slerp,
    }
    return builders[merge.method](merge)


def _models(merge: Merge, **parameters: float) -> list[dict[str, Any]]:
    return [
        {"model": f"{local(merge.base)}+{local(adapter)}", **({"parameters": dict(parameters)} if parameters else {})}
        for adapter in merge.adapters
    ]


def _average(merge: Merge) -> Built:
    """A weighted sum of whole models; scaling the delta by x is giving the base the weight 1 - x.

    mergekit counts ``base_model`` among the models of ``linear``, so the base is listed, if only with weight 0.
    """
    share = merge.scale / len(merge.adapters)
    base = {"model": local(merge.base), "parameters": {"weight": 1 - merge.scale}}
    keys = {
        "merge_method": "linear",
        "base_model": local(merge.base),
        "models": [base, *_models(merge, weight=share)],
        "parameters": {"normalize": False},
    }
    weights = f"Equal weights 1/{len(merge.adapters)}" + (
        " (DTM equation 1)." if merge.method == "average" else " (ours)."
    )
    scaled = "" if merge.scale == 1 else f" Scaled by {merge.scale:g}: base + {merge.scale:g} * (average - base)."
    return keys, [weights + scaled, "mergekit counts the base among the models of linear, hence its own weight."]


def _task_arithmetic(merge: Merge) -> Built:
    single = len(merge.adapters) == 1
    notes = [] if single else ["Deltas are added with weight 1 each (ours; the papers give no weights)."]
    keys = {
        "merge_method": "task_arithmetic",
        "base_model": local(merge.base),
        "models": _models(merge, weight=1.0),
        "parameters": {"normalize": False, "lambda": merge.scale},
    }
    return keys, notes + _scale_note(merge)


def _ties(merge: Merge) -> Built:
    keys = {
        "merge_method": "ties",
        "base_model": local(merge.base),
        "models": _models(merge, weight=1.0, density=DENSITY),
        "parameters": {"normalize": True, "lambda": merge.scale},
    }
    return keys, [
        f"density {DENSITY} and equal weights are ours; normalize is TIES's disjoint mean.",
        *_scale_note(merge),
    ]


def _dare(merge: Merge) -> Built:
    keys = {
        "merge_method": merge.method,
        "base_model": local(merge.base),
        "models": _models(merge, weight=1 / len(merge.adapters), density=DENSITY),
        "parameters": {"normalize": False, "lambda": merge.scale},
    }
    notes = [f"density {DENSITY} and equal weights are ours. The dropout is random: keep --random-seed to repeat it."]
    return keys, [*notes, *_scale_note(merge)]


def _slerp(merge: Merge) -> Built:
    """Spherical interpolation of two full models; ``scale`` has no place in it."""
    models = _models(merge)
    keys = {"merge_method": "slerp", "base_model": models[0]["model"], "models": models, "parameters": {"t": 0.5}}
    return keys, ["t 0.5, halfway, is ours."]


def _scale_note(merge: Merge) -> list[str]:
    return [] if merge.scale == 1 else [f"The merged delta is scaled by {merge.scale:g} (lambda)."]


def local(path: str) -> str:
    """A path as mergekit takes it for one: it looks up on the hub what has the form of a hub id."""
    return f"./{path}" if path.startswith("outputs/") else path
