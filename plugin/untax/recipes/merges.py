"""The models of the arms: single adapters merged into the base, several merged together, each at its scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from untax.recipes.arms import Merged, Vanilla
from untax.recipes.folder import Collected
from untax.recipes.graph import ScoredModel
from untax.recipes.merge_choice import Merge as MergeChoice
from untax.recipes.mergekit_yaml import UNSCALED, Merge


class Models:
    """Merges and the rows of the table that they stand for."""

    def __init__(self, collected: Collected):
        self.collected = collected
        self.spec, self.layout = collected.spec, collected.layout
        self.rows: list[tuple[str, ScoredModel]] = []
        """(arm, row of the table)."""
        others = [(name, arm) for name, arm in self.spec.arms.items() if not isinstance(arm, Vanilla)]
        self.single = len(others) == 1 and others[0][0] == others[0][1].arm

    def alone(self, arm: str, scales: Sequence[float], node: str, *, model: str, row: str | None = None) -> None:
        """One training merged into the base, at each scale."""
        for scale in scales:
            self._row(arm, row or arm, scale, self._single(arm, node, scale, model))

    def whole(self, arm: str, node: str, *, model: str) -> str:
        """One training merged into the base, for a training that starts from it; the name of its node."""
        return self._single(arm, node, 1.0, model)

    def continued(self, row: str, arm: str, scales: Sequence[float], start: str, node: str) -> None:
        """A training that started from the model ``start``, merged into it; scaled, the delta of both stages is."""
        merge = Merge(self.layout.output(start), [self.layout.output(node)], "task_arithmetic", 1.0, self.spec.dtype)
        purpose = ["The SFT model with the preference adapter merged into it."]
        whole = self.collected.merge(row, arm, merge, purpose=purpose, needs=[node, start])
        for scale in scales:
            self._row(arm, row, scale, whole if scale == 1 else self._stepped_back(arm, whole, scale))

    def merged(
        self,
        arm: str,
        settings: Merged,
        choice: MergeChoice,
        adapters: Sequence[str],
        *,
        statistics: Sequence[tuple[str, str]] = (),
        part: str | None = None,
    ) -> None:
        """Several trainings merged, at each scale.

        Args:
            arm: the arm.
            settings: its settings.
            choice: the method.
            adapters: names of the trainings.
            statistics: for each the node and the file of its statistics, where the method weighs by them.
            part: the preference method, where the arm has several.
        """
        label, several = choice.label, len(settings.merge) > 1
        row = "-".join(name for name in (arm, part, label if several else None) if name)
        if self.single:
            base_name = "-".join(name for name in (part, label) if name)
        else:
            prefix = "-".join(name for name in (arm, part) if name)
            base_name = prefix if label == "average" or label == arm else f"{prefix}-{label}"
        purpose = [f"The {choice.method} merge of arm {arm}: {len(adapters)} adapters of one base."]
        needs = [*adapters, *(node for node, _ in statistics)]
        for scale in settings.scales:
            step_back = scale != 1 and choice.method in UNSCALED
            merge = self._merge(choice, adapters, 1.0 if step_back else scale, [file for _, file in statistics])
            name = base_name if scale == 1 or step_back else f"{base_name}-{scale:g}"
            made = self.collected.merge(name, arm, merge, purpose=purpose, needs=needs)
            self._row(arm, row, scale, self._stepped_back(arm, made, scale) if step_back else made)

    def _merge(self, choice: MergeChoice, adapters: Sequence[str], scale: float, statistics: list[str]) -> Merge:
        folders = [self.layout.output(adapter) for adapter in adapters]
        more: dict[str, Any] = {"density": choice.density, "weights": choice.weights, "t": choice.t}
        return Merge(self.spec.base, folders, choice.method, scale, self.spec.dtype, statistics=statistics, **more)

    def _single(self, arm: str, node: str, scale: float, model: str) -> str:
        name = model if scale == 1 else f"{model}-{scale:g}"
        what = "Vanilla SFT" if node == "sft" else f"The adapter {node}"
        purpose = [f"{what} merged into the base" + ("." if scale == 1 else f", its delta scaled by {scale:g}.")]
        merge = Merge(self.spec.base, [self.layout.output(node)], "task_arithmetic", scale, self.spec.dtype)
        return self.collected.merge(name, arm, merge, purpose=purpose, needs=[node])

    def _stepped_back(self, arm: str, model: str, scale: float) -> str:
        """A whole model between the base and ``model``, or beyond it."""
        purpose = [f"The model {model}, its delta from the base scaled by {scale:g}."]
        merge = Merge(
            self.spec.base, [self.layout.output(model)], "task_arithmetic", scale, self.spec.dtype, whole=True
        )
        return self.collected.merge(f"{model}-{scale:g}", arm, merge, purpose=purpose, needs=[model])

    def _row(self, arm: str, row: str, scale: float, node: str) -> None:
        self.rows.append((arm, ScoredModel(row, scale, self.layout.output(node), self.layout.results(node))))
