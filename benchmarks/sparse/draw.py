"""docs/figures/sparse-*.png from benchmarks/sparse/results.json: python benchmarks/sparse/draw.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "docs" / "figures"
STRENGTHS = {"l1 product": "delta_l1", "l1 factors": "delta_l1", "l2": "delta_l2", "ewc": "delta_ewc"}
PRUNED = ("pruned", "pruned, 3 x learning rate")
COLOURS = dict(zip([*STRENGTHS, *PRUNED, "dense"], ["C0", "C1", "C2", "C4", "C3", "C5", "k"], strict=True))


def main() -> None:
    content = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    runs = [run for run in content["runs"] if (run["steps"], run["seed"]) == (300, 42)]
    dense = next(run for run in runs if run["arm"] == "dense")
    _lambdas(runs, dense)
    _frontier(runs, dense, content["base"])


def _lambdas(runs: list[dict[str, Any]], dense: dict[str, Any]) -> None:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    measures = (("sparsity", "share of |delta| < 1e-5"), ("response_nll", "gain: NLL of responses"), ("tax", "tax"))
    for axis, (key, label) in zip(axes, measures, strict=True):
        for kind, strength in STRENGTHS.items():
            points = sorted((run[strength], run[key]) for run in runs if run["arm"] == kind)
            axis.semilogx(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS[kind], label=kind)
        axis.axhline(dense[key], color="k", linewidth=0.8, linestyle="--", label="dense")
        axis.set(xlabel="lambda", title=label)
    axes[0].legend(fontsize=7, frameon=False)
    _save(figure, "sparse-lambda.png")


def _frontier(runs: list[dict[str, Any]], dense: dict[str, Any], base: dict[str, float]) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for kind in (*STRENGTHS, *PRUNED):
        own = [run for run in runs if run["arm"] == kind]
        for axis, key in ((left, "sparsity"), (right, "tax")):
            axis.scatter(
                [run["response_nll"] for run in own], [run[key] for run in own], s=16, color=COLOURS[kind], label=kind
            )
    curve = [(run["response_nll"], run["tax"]) for run in (dense, *dense["scaled"])]
    right.plot(*zip(*curve, (base["response_nll"], 0.0), strict=True), "k.-", linewidth=0.8, label="dense, scaled down")
    left.axvline(dense["response_nll"] * 1.02, color="0.5", linewidth=0.8, linestyle=":", label="dense + 2%")
    left.axhline(0.9, color="0.5", linewidth=0.8, linestyle="--", label="90%")
    left.set(xlabel="gain: NLL of responses", title="share of |delta| < 1e-5")
    right.set(xlabel="gain: NLL of responses", title="tax: rise of NLL on stories")
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False)
    _save(figure, "sparse-frontier.png")


def _save(figure: Figure, name: str) -> None:
    figure.savefig(FIGURES / name, dpi=130, metadata={"Software": None})
    print(FIGURES / name)


if __name__ == "__main__":
    main()
