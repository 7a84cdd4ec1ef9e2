"""From a spec to the run folder: every YAML, the graph of nodes, and the models that are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from untax.recipes.arms import (
    KINDS,
    L2,
    Arm,
    Dtm,
    DtmPaft,
    Ewc,
    Individual,
    Merged,
    Paft,
    Parallel,
    Replay,
    Sequential,
    Soup,
    Vanilla,
)
from untax.recipes.folder import Collected, TwoOutputs
from untax.recipes.graph import Layout, Node, Plan, ScoredModel
from untax.recipes.merge_choice import STATISTICS
from untax.recipes.merges import Models
from untax.recipes.spec import RunSpec
from untax.recipes.stages import Stages

__all__ = ["TwoOutputs", "plan"]

BASE = "base"


def plan(spec: RunSpec, *, folder: str = ".", layout: Layout | None = None) -> Plan:
    """Expand a spec.

    Args:
        spec: the recipe.
        folder: the run folder as the user would type it after ``cd``, for the launch commands in the headers.
        layout: where things lie below the run folder.

    Raises:
        TwoOutputs: two arms would write one folder.
    """
    collected = Collected(spec, folder, layout or Layout())
    arms = _Arms(collected)
    for name, arm in _named_by_kind_first(spec):
        arms.add(name, arm)
    rows = arms.models.rows
    order = {name: place for place, name in enumerate(spec.arms)}
    rows.sort(key=lambda row: order[row[0]])
    models = [ScoredModel(BASE, 0.0, spec.base, collected.layout.results(BASE)), *(model for _, model in rows)]
    _score(collected, models)
    return Plan(collected.files, tuple(collected.nodes.values()), tuple(models))


def _named_by_kind_first(spec: RunSpec) -> list[tuple[str, Any]]:
    """Arms that are called by their kind come first, so that no other arm can take the names of what they make.

    They come in one order, whatever the recipe's: who of two arms names what they share must not depend on it.
    """
    kinds = list(KINDS)
    others = len(kinds)
    return sorted(spec.arms.items(), key=lambda item: kinds.index(item[0]) if item[0] == item[1].arm else others)


class _Arms:
    """What each kind of arm is made of."""

    def __init__(self, collected: Collected):
        self.spec = collected.spec
        self.stages = Stages(collected)
        self.models = Models(collected)

    def add(self, name: str, arm: Arm) -> None:
        """All nodes of an arm, and its rows of the table."""
        kinds: dict[type[Arm], Callable[[str, Any], None]] = {
            Vanilla: self._vanilla,
            Dtm: self._dtm,
            L2: self._l2,
            Ewc: self._ewc,
            Replay: self._replay,
            Soup: self._soup,
            Individual: self._individual,
            Sequential: self._sequential,
            Parallel: self._parallel,
            Paft: self._paft,
            DtmPaft: self._dtm_paft,
        }
        kinds[type(arm)](name, arm)

    def _vanilla(self, name: str, arm: Vanilla) -> None:
        self.models.alone(name, arm.scales, self.stages.sft(name), model=_own("vanilla", name, arm))

    def _l2(self, name: str, arm: L2) -> None:
        purpose = "SFT with an L2 penalty on the delta (the baseline L2-norm of Disperse-Then-Merge, table 1)."
        node = self.stages.penalised(name, _own("sft-l2", name, arm), {"delta_l2": arm.delta_l2}, purpose)
        self.models.alone(name, arm.scales, node, model=name)

    def _ewc(self, name: str, arm: Ewc) -> None:
        fisher, needs = (arm.fisher, ()) if arm.fisher else self.stages.base_fisher(name, arm)
        purpose = "SFT with elastic weight consolidation (the baseline EWC of Disperse-Then-Merge, table 1)."
        keys = {"delta_ewc": arm.delta_ewc, "delta_ewc_fisher": fisher}
        node = self.stages.penalised(name, _own("sft-ewc", name, arm), keys, purpose, needs=needs)
        self.models.alone(name, arm.scales, node, model=name)

    def _replay(self, name: str, arm: Replay) -> None:
        self.models.alone(name, arm.scales, self.stages.replayed(name, arm), model=name)

    def _individual(self, name: str, arm: Individual) -> None:
        for part in arm.of:
            if part == "sft":
                node = self.stages.sft(name)
            elif part == "sft-sparse":
                node = self.stages.sft_sparse(name, arm)
            else:
                node = self.stages.preference(name, part)
            own = "vanilla" if part == "sft" else _own(f"{part}-alone", name, arm)
            self.models.alone(name, arm.scales, node, model=own, row=_own(f"{part}-alone", name, arm))

    def _sequential(self, name: str, arm: Sequential) -> None:
        """Its second stage trains on the first one's merged model, so that it is trained on by any tool."""
        for stage in arm.sft:
            first = self.stages.sft(name) if stage == "dense" else self.stages.sft_sparse(name, arm)
            folder = "vanilla" if stage == "dense" else _own("sft-sparse-alone", name, arm)
            start = self.models.whole(name, first, model=folder)
            for method in arm.methods(self.spec.method):
                ending = f"{name}-sparse" if stage == "sparse" else name
                row = f"{ending}-{method}" if len(arm.methods(self.spec.method)) > 1 else ending
                second = self.stages.preference(name, method, start=start, ending=ending)
                self.models.continued(row, name, arm.scales, start, second)

    def _dtm(self, name: str, arm: Dtm) -> None:
        self._merges(name, arm, self.stages.clusters(name, arm))

    def _soup(self, name: str, arm: Soup) -> None:
        self._merges(name, arm, [self.stages.soup_run(name, arm, index) for index in range(len(arm.runs))])

    def _parallel(self, name: str, arm: Parallel) -> None:
        for method in arm.methods(self.spec.method):
            adapters = [self.stages.sft(name), self.stages.preference(name, method)]
            self._merges(name, arm, adapters, method)

    def _paft(self, name: str, arm: Paft) -> None:
        for method in arm.methods(self.spec.method):
            adapters = [self.stages.sft_sparse(name, arm), self.stages.preference(name, method)]
            self._merges(name, arm, adapters, method)

    def _dtm_paft(self, name: str, arm: DtmPaft) -> None:
        clusters = self.stages.clusters(name, arm)
        for method in arm.methods(self.spec.method):
            self._merges(name, arm, [*clusters, self.stages.preference(name, method)], method)

    def _merges(self, name: str, arm: Merged, adapters: list[str], method: str | None = None) -> None:
        """Every merge of an arm's adapters; of several preference methods each has models of its own."""
        several = method is not None and len(arm.methods(self.spec.method)) > 1
        for merge in arm.merge:
            files = self._statistics(name, arm, merge.method, adapters)
            self.models.merged(name, arm, merge, adapters, statistics=files, part=method if several else None)

    def _statistics(self, name: str, arm: Merged, method: str, adapters: Sequence[str]) -> list[tuple[str, str]]:
        if arm.statistics is None or method not in STATISTICS:
            return []
        return [self.stages.statistics(name, STATISTICS[method], adapter, arm.statistics) for adapter in adapters]


def _own(wanted: str, name: str, arm: Any) -> str:
    """What a thing of an arm is called: plainly, or with the arm's name behind where that is not its kind's."""
    return wanted if name == arm.arm else f"{wanted}-{name}" if wanted != arm.arm else name


def _score(collected: Collected, models: list[ScoredModel]) -> None:
    """A node for each row's name; a model that stands in two rows is scored once."""
    suite, scored = collected.spec.suite, set[str]()
    if suite is None:
        return
    for arm in dict.fromkeys(model.arm for model in models):
        new = [model for model in models if model.arm == arm and model.results not in scored]
        names, results = tuple(model.model for model in new), tuple(model.results for model in new)
        scored.update(results)
        if not new:
            continue
        # The base's results have a name of their own: a base may be called like one of the models.
        label = ("--as", BASE) if arm == BASE else ()
        command = ("untax", "eval", *names, "--suite", suite, *label)
        needs = () if arm == BASE else tuple(name.rsplit("/", 1)[-1] for name in names)
        name = f"score-{arm}"
        if name in collected.nodes:
            raise TwoOutputs(
                f"arms.{arm} is scored by a node {name}, and a model has this name: rename one of the arms"
            )
        collected.nodes[name] = Node(name, "score", command, results, None, needs, models=names)
