"""The extension points of untax. Implement them in a package of your own:

    [project.entry-points.untax]
    my_package = "my_package.untax_hooks"

and decorate the functions there with ``untax.hookimpl``. untax's own parts register the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("untax")


@hookspec
def disperse_strategies() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Return {name: strategy} for ``disperse_strategy``.

    A strategy is called as ``strategy(corpus, clusters=K, seed=S)`` with an ``untax.data.corpus.Corpus`` of N rows and
    returns N integers in [0, K). It must not change the corpus and must give the same answer for the same input. It may
    name more keywords: ``text``, ``embedder``, ``column``, ``balanced``, ``first_turn`` (the ``disperse_*`` keys, where
    they are given), ``cache`` (a folder to keep costly things in) and ``processes``. To say more than the clusters,
    return an ``untax.disperse.strategy.Dispersal``; to explain them or to split the work, register an
    ``untax.disperse.strategy.Strategy``.
    """


@hookspec
def disperse_embedders() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Return {name: factory} for ``disperse_embedder: name:argument``.

    A factory is called as ``factory(argument, texts=..., cache=..., seed=...)``, with only those keywords that it
    names: all texts of the corpus, a folder to keep things in, the seed. It returns an
    ``untax.disperse.embed.embedder.Embedder``. Whatever decides a vector must be in its ``identity``.
    """


@hookspec
def delta_penalties() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Return {key: penalty} for the ``delta_*`` keys of DeltaPenaltyPlugin, whose value is lambda.

    A penalty is called as ``penalty(delta, weight=W)`` with the ``untax.adapters.delta.LiveDelta`` of one tensor and
    adds the gradient of ``W * norm(delta)`` to what is trained, by ``delta.add_gradient``. It must change nothing else.
    It may name more keywords: ``fisher``, the ``untax.adapters.statistics.Diagonal`` of ``delta_ewc_fisher`` or None,
    and ``target``, ``product`` or ``factors``: with the latter it is called for A and for B.
    """


@hookspec
def eval_suites() -> Mapping[str, Path]:  # type: ignore[empty-body]
    """Return {name: folder of lm-eval task YAMLs} for ``untax eval --suite``.

    The folder must define a group or tag called ``untax_<name>``. It is read, never written.
    """


@hookspec
def merge_methods() -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Return {name: untax.merge.method.Method} for ``merge_method`` in a mergekit YAML.

    Its ``merge`` gets one block of rows of K deltas and returns the merged delta; it must not look beyond the block,
    nor change anything but the block's deltas. `untax mergekit enable` makes the method known to mergekit-yaml as well.
    """
