"""Disperse-Then-Merge: table 10's settings on its bases and corpora."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from untax.recipes.papers import dtm_sft, padded_with, values
from untax.recipes.presets import bases, corpora
from untax.recipes.presets.bases import Base
from untax.recipes.presets.corpora import Corpus
from untax.recipes.presets.preset import Preset

MERGES = ["average", "task_arithmetic", "ties", "dare_linear"]
PRECISION = (
    "bfloat16 where the GPU has it; the paper's V100s had float16 only. One GPU and gradient accumulation for the "
    "batch of 16."
)
WEIGHTS = (
    "The paper gives no weights or densities for merging: task arithmetic adds the deltas with weight 1, and "
    "TIES and DARE keep half of each."
)
MINILM = "sentence-transformers:all-MiniLM-L6-v2"
MPNET = "sentence-transformers:all-mpnet-base-v2"
SOUP = [{"learning_rate": 3e-4}, {"learning_rate": 1e-4}, {"learning_rate": 2e-4}, {"learning_rate": 5e-4}]


def _content(base: Base, corpus: Corpus, arms: dict[str, Any], learning_rate: float = 3e-4) -> dict[str, Any]:
    settings = dtm_sft(learning_rate)
    if base.pad_token is not None:
        settings["special_tokens"] = padded_with(base.pad_token)
    return {
        "base": base.path,
        "sft": deepcopy(list(corpus.entries)),
        **({"first_turn": True} if corpus.first_turn else {}),
        "arms": arms,
        "training": {"sft": values(settings)},
        "settings": "dtm",
        "dtype": "float16",
    }


def _preset(
    name: str,
    title: str,
    tables: str,
    text: tuple[str, ...],
    arms: dict[str, Any],
    *,
    base: Base = bases.LLAMA2_7B,
    corpus: Corpus = corpora.TULU2,
    learning_rate: float = 3e-4,
    differs: tuple[str, ...] = (),
) -> Preset:
    content = _content(base, corpus, arms, learning_rate)
    return Preset(name, title, f"DTM {tables}", base, content, corpus, text, differs=(*differs, PRECISION))


def _main() -> Preset:
    arms = {
        "vanilla": {},
        "l2": {"delta_l2": 0.01},
        "ewc": {"delta_ewc": 0.001, "samples": 256},
        "replay": {"ratio": 1.0},
        "soup": {"runs": SOUP},
        "dtm": {"clusters": 4, "merge": MERGES},
    }
    content = {**_content(bases.LLAMA2_7B, corpora.TULU2, arms), "replay": [deepcopy(corpora.SLIMPAJAMA.entry)]}
    return Preset(
        "dtm-llama2-7b-tulu2",
        "Disperse-Then-Merge: Llama-2-7B on Tulu-V2-mix",
        "DTM tables 1, 3 and 4",
        bases.LLAMA2_7B,
        content,
        corpora.TULU2,
        (
            "The rows Vanilla, L2-norm, EWC, Replay, Uniform Soup and DTM of table 1, and the merges Task Vector, "
            "Tie Merge and DARE of table 4. The four sub-models see the same tokens as one vanilla SFT and never "
            "talk to each other.",
        ),
        replay=corpora.SLIMPAJAMA,
        differs=(
            "Of table 1, MoE and Deita are left out: one changes the model, the other selects data by a model of its "
            "own.",
            "Of table 4, Fisher is left out: it needs a local file of rows like the training's, to estimate each "
            "sub-model's Fisher information on. With one, add `fisher` to `merge` of the arm `dtm`, and `statistics: "
            "FILE` beside it.",
            "The paper gives neither the strength of L2-norm and EWC nor the runs of Uniform Soup. Ours: 0.01 and "
            "0.001, and four learning rates around table 10's, of which the first is vanilla SFT's own.",
            WEIGHTS,
            PRECISION,
        ),
    )


def _clustering() -> Preset:
    arms: dict[str, Any] = {"vanilla": {}, "dtm": {"clusters": 4}}
    for model, embedder in (("minilm", MINILM), ("mpnet", MPNET)):
        for encoded, text in (("ir", "both"), ("i", "instruction"), ("r", "response")):
            arms[f"dtm-{model}-{encoded}"] = {
                "arm": "dtm",
                "clusters": 4,
                "strategy": "kmeans",
                "text": text,
                "embedder": embedder,
            }
    return _preset(
        "dtm-llama2-7b-tulu2-clustering",
        "Disperse-Then-Merge: clustering methods, Llama-2-7B on Tulu-V2-mix",
        "table 2",
        (
            "All rows of table 2: random clusters, and k-means on MiniLM's and MPNet's embeddings of the instruction "
            "(`i`), the response (`r`) and both (`ir`).",
            "Needs `pip install sentence-transformers`. Embedding 326,154 rows is done once for each text and model, "
            "before the first training of its arm.",
        ),
        arms,
        differs=(
            "The paper names MiniLM and MPNet and the SentenceTransformers library, not the models: ours are its "
            "all-MiniLM-L6-v2 and all-mpnet-base-v2.",
        ),
    )


def _clusters() -> Preset:
    arms = {f"dtm-k{clusters}": {"arm": "dtm", "clusters": clusters} for clusters in range(2, 7)}
    return _preset(
        "dtm-llama2-7b-tulu2-k",
        "Disperse-Then-Merge: number of sub-models, Llama-2-7B on Tulu-V2-mix",
        "figure 11",
        ("K from 2 to 6. In the paper K = 4 is best.",),
        {"vanilla": {}, **arms},
    )


def _corpus(name: str, corpus: Corpus, differs: tuple[str, ...] = ()) -> Preset:
    return _preset(
        f"dtm-llama2-7b-{name}",
        f"Disperse-Then-Merge: Llama-2-7B on {corpus.name}",
        "table 5",
        (f"The rows Vanilla and DTM of {corpus.name} in table 5.",),
        {"vanilla": {}, "dtm": {"clusters": 4}},
        corpus=corpus,
        differs=differs,
    )


BAICHUAN = (
    "Baichuan-2-7B, table 6's other base, has no recipe: its model is not part of transformers, only code of its own "
    "that would have to be trusted and that is made for older versions."
)

PRESETS = (
    _main(),
    _clustering(),
    _clusters(),
    _preset(
        "dtm-mistral-7b-tulu2",
        "Disperse-Then-Merge: Mistral-7B on Tulu-V2-mix",
        "table 6",
        ("The rows Vanilla SFT and Ours of Mistral-7B in table 6. Its learning rate is 0.00005 (table 10).",),
        {"vanilla": {}, "dtm": {"clusters": 4}},
        base=bases.MISTRAL_7B,
        learning_rate=5e-5,
        differs=(BAICHUAN,),
    ),
    _preset(
        "dtm-tinyllama-1.1b-tulu2",
        "Disperse-Then-Merge: TinyLlama-1.1B on Tulu-V2-mix",
        "figure 10",
        (
            "Figure 10 trains TinyLlama-1.1B by vanilla SFT on more and more of the mix, to show the tax; DTM is "
            "added here. For a point of the curve, give the data a share, such as `split: train[:10%]`, in a run "
            "folder of its own.",
        ),
        {"vanilla": {}, "dtm": {"clusters": 4}},
        base=bases.TINYLLAMA,
        differs=(
            "Table 10 has no column for TinyLlama: these are Llama-2-7B's settings. The checkpoint is the last one.",
        ),
    ),
    _corpus("alpaca-gpt4", corpora.ALPACA_GPT4),
    _corpus("code-alpaca", corpora.CODE_ALPACA),
    _corpus("baize", corpora.BAIZE),
    _corpus("camel", corpora.CAMEL),
    _corpus("evol-instruct", corpora.EVOL_INSTRUCT),
    _corpus("lima", corpora.LIMA),
)
