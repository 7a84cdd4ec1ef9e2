"""The arms of a run folder: each way of training and merging that the papers compare, and its settings."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from untax.errors import near_names
from untax.recipes.checks import refuse, soup_problems, twice, unknown_name
from untax.recipes.merge_choice import OF_TWO, STATISTICS, Merge, Strict
from untax.recipes.preference import METHODS


def each_once(values: list[Any]) -> list[Any]:
    """The values, refused if one comes twice."""
    refuse(twice(values))
    return values


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("lambda is a finite number >= 0")
    return value


def _methods(names: list[str]) -> list[str]:
    known = list(METHODS)
    refuse([f"unknown method '{name}'. {near_names(name, known)}" for name in names if name not in METHODS])
    return names


def _trainings(names: list[str]) -> list[str]:
    known = ["sft", "sft-sparse", *METHODS]
    refuse([f"unknown training '{name}'. {near_names(name, known)}" for name in names if name not in known])
    return names


def _each_merge_once(merges: list[Merge]) -> list[Merge]:
    refuse(twice([merge.label for merge in merges]))
    return merges


Scale = Annotated[float, Field(gt=0, le=2)]
Scales = Annotated[list[Scale], Field(min_length=1), AfterValidator(each_once)]
Merges = Annotated[list[Merge], Field(min_length=1), AfterValidator(_each_merge_once)]
Lambda = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Preferences = Annotated[list[str], Field(min_length=1), AfterValidator(each_once), AfterValidator(_methods)]
Stage = Literal["dense", "sparse"]
Sft = Annotated[list[Stage], Field(min_length=1), AfterValidator(each_once)]


class Arm(Strict):
    """What all arms have.

    Attributes:
        scales: what the delta of its models is multiplied by; one model for each.
    """

    scales: Scales = Field(default_factory=lambda: [1.0])

    def trains_on(self) -> tuple[str, ...]:
        """The data that it needs: ``sft``, ``preference``, ``replay``."""
        return ("sft",)

    def idle(self) -> tuple[str, ...]:
        """Settings that play no part in what the arm trains."""
        return ()

    def methods(self, default: str) -> list[str]:
        """Its preference methods, those of the recipe where it names none; none for an arm without."""
        return []


class Merged(Arm):
    """An arm whose adapters are merged.

    Attributes:
        merge: the methods; one model for each.
        statistics: a file of instruction rows or texts on which ``fisher`` and ``regmean`` weigh each adapter.
    """

    merge: Merges = Field(default_factory=lambda: [Merge(method="average")])
    statistics: str | None = None

    def adapters(self) -> int:
        """How many adapters each merge has."""
        return 2

    @model_validator(mode="after")
    def _merges_have_meaning(self) -> Merged:
        problems, count = [], self.adapters()
        for index, merge in enumerate(self.merge):
            if merge.method in OF_TWO and count != 2:
                problems.append(f"merge.{index}: {merge.method} merges two models, and this arm has {count}")
            if merge.weights is not None and len(merge.weights) != count:
                problems.append(f"merge.{index}: weights has {len(merge.weights)} numbers for {count} adapters")
            if merge.method in STATISTICS and not self.statistics:
                problems.append(
                    f"merge.{index}: {merge.method} needs statistics: a local file of texts like the training's"
                )
        refuse(problems)
        return self


class Sparse(Strict):
    """How the SFT of an arm is made sparse.

    Attributes:
        delta_l1: lambda of the L1 penalty (PAFT equation 1; its values are 0.0001 and 0.001).
        delta_sparsity: prune the delta to this share of exact zeros; not in the paper.
    """

    delta_l1: Lambda = 1e-4
    delta_sparsity: float | None = Field(default=None, gt=0, lt=1)

    @property
    def sparse_keys(self) -> dict[str, Any]:
        """The ``delta_*`` keys of a sparse SFT."""
        pruned = {} if self.delta_sparsity is None else {"delta_sparsity": self.delta_sparsity}
        return {"delta_l1": self.delta_l1, **pruned}


class Vanilla(Arm):
    """SFT on all instruction data."""

    arm: Literal["vanilla"] = "vanilla"


class Dtm(Merged):
    """Disperse-Then-Merge: K sub-models, one per cluster, averaged (DTM section 4)."""

    arm: Literal["dtm"] = "dtm"
    clusters: int = Field(default=4, ge=2, le=1000)
    strategy: str = "random"
    seed: int = 42
    balanced: bool | None = None
    text: Literal["instruction", "response", "both"] | None = None
    embedder: str | None = None
    column: str | None = None

    @field_validator("strategy")
    @classmethod
    def _registered(cls, strategy: str) -> str:
        refuse(unknown_name("disperse_strategies", strategy))
        return strategy

    def adapters(self) -> int:
        """K."""
        return self.clusters

    @property
    def disperse_options(self) -> dict[str, Any]:
        """The ``disperse_*`` keys that only some strategies take, as far as they are given."""
        names = ("balanced", "text", "embedder", "column")
        given = {f"disperse_{name}": getattr(self, name) for name in names}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def disperse_keys(self) -> dict[str, Any]:
        """The ``disperse_*`` keys that decide the clusters."""
        return {
            "disperse_clusters": self.clusters,
            "disperse_strategy": self.strategy,
            "disperse_seed": self.seed,
            **self.disperse_options,
        }


class L2(Arm):
    """SFT with an L2 penalty on the delta (the baseline L2-norm of DTM table 1)."""

    arm: Literal["l2"] = "l2"
    delta_l2: Lambda = 0.01


class Ewc(Arm):
    """SFT with elastic weight consolidation (the baseline EWC of DTM table 1).

    Attributes:
        delta_ewc: lambda.
        fisher: the base's diagonal Fisher information; without it, it is estimated on the replay text.
        samples: how many texts it is estimated on.
    """

    arm: Literal["ewc"] = "ewc"
    delta_ewc: Lambda = 0.01
    fisher: str | None = None
    samples: int = Field(default=256, ge=1)

    def trains_on(self) -> tuple[str, ...]:
        """Instruction data, and pretraining text to estimate the Fisher information on."""
        return ("sft",) if self.fisher else ("sft", "replay")


class Replay(Arm):
    """SFT with pretraining text mixed into the instruction data (the baseline Replay of DTM table 1).

    Attributes:
        ratio: rows of text for each row of instruction data.
    """

    arm: Literal["replay"] = "replay"
    ratio: float = Field(default=1.0, gt=0, le=100)

    def trains_on(self) -> tuple[str, ...]:
        """Instruction data and pretraining text."""
        return ("sft", "replay")


class Soup(Merged):
    """Runs on all instruction data with different hyper-parameters, averaged (Uniform Soup of DTM table 1).

    Attributes:
        runs: for each, the Axolotl keys in which it differs from plain SFT.
    """

    arm: Literal["soup"] = "soup"
    runs: list[dict[str, Any]] = Field(min_length=2)

    def adapters(self) -> int:
        """One for each run."""
        return len(self.runs)

    @field_validator("runs")
    @classmethod
    def _differ(cls, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        refuse(soup_problems(runs))
        return runs


class WithPreference(Arm):
    """An arm with a preference training.

    Attributes:
        preference: the methods, each for itself; None is the recipe's own.
    """

    preference: Preferences | None = None

    def trains_on(self) -> tuple[str, ...]:
        """Instruction data and preference pairs."""
        return ("sft", "preference")

    def methods(self, default: str) -> list[str]:
        """Its preference methods."""
        return [default] if self.preference is None else self.preference


class Individual(Sparse, Arm):
    """Single trainings, each merged into the base by itself (the rows "individual" of PAFT table 1).

    Attributes:
        of: ``sft``, ``sft-sparse`` and preference methods.
    """

    arm: Literal["individual"] = "individual"
    of: Annotated[list[str], Field(min_length=1), AfterValidator(each_once), AfterValidator(_trainings)]

    def trains_on(self) -> tuple[str, ...]:
        """What its trainings need."""
        return tuple(data for data, used in (("sft", self._sft), ("preference", self.methods(""))) if used)

    def methods(self, default: str) -> list[str]:
        """The preference methods among its trainings."""
        return [name for name in self.of if name not in self._sft]

    def idle(self) -> tuple[str, ...]:
        """Without a sparse SFT, what makes it sparse."""
        return () if "sft-sparse" in self.of else ("delta_l1", "delta_sparsity")

    @property
    def _sft(self) -> list[str]:
        return [name for name in self.of if name in ("sft", "sft-sparse")]


class Sequential(Sparse, WithPreference):
    """SFT, then preference training that starts from its result (the rows "sequential" of PAFT table 1).

    Attributes:
        sft: the first stage: ``dense``, ``sparse``, or both, each with a second stage of its own.
    """

    arm: Literal["sequential"] = "sequential"
    sft: Sft = Field(default_factory=lambda: list[Stage](("dense",)))

    def idle(self) -> tuple[str, ...]:
        """Without a sparse first stage, what makes it sparse."""
        return () if "sparse" in self.sft else ("delta_l1", "delta_sparsity")


class Parallel(WithPreference, Merged):
    """PAFT without the penalty: dense SFT and preference training in parallel, merged (PAFT table 1)."""

    arm: Literal["parallel"] = "parallel"
    merge: Merges = Field(default_factory=lambda: [Merge(method="ties")])


class Paft(Sparse, WithPreference, Merged):
    """SFT with an L1 penalty and preference training in parallel from one base, merged (PAFT section 2)."""

    arm: Literal["paft"] = "paft"
    merge: Merges = Field(default_factory=lambda: [Merge(method="ties")])


class DtmPaft(Sparse, WithPreference, Dtm):
    """K sparse sub-models and one preference model from one base, merged together; in neither paper."""

    arm: Literal["dtm-paft"] = "dtm-paft"  # type: ignore[assignment]
    merge: Merges = Field(default_factory=lambda: [Merge(method="ties")])

    def adapters(self) -> int:
        """K sub-models and the preference model."""
        return self.clusters + 1


AnyArm = Vanilla | Dtm | L2 | Ewc | Replay | Soup | Individual | Sequential | Parallel | Paft | DtmPaft
KINDS: dict[str, type[Arm]] = {
    str(kind.model_fields["arm"].default): kind
    for kind in (Vanilla, Dtm, L2, Ewc, Replay, Soup, Individual, Sequential, Parallel, Paft, DtmPaft)
}
"""Every kind of arm by its name, in the order of the tables."""
