"""The trainings of the arms, and what they need before: dispersal, replay text, Fisher information."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from untax.recipes.arms import Dtm, DtmPaft, Ewc, Replay, Soup, Sparse
from untax.recipes.checks import DISPERSE, MANIFEST, PENALTY
from untax.recipes.folder import Collected, prepared_apart, with_plugins
from untax.recipes.graph import Node
from untax.recipes.mergekit_yaml import local
from untax.recipes.papers import device_settings, unless_given, values
from untax.recipes.trainings import penalty_keys, preference_datasets, preference_keys, sft_keys

REPLAY_FILE = "replay.jsonl"


class Stages:
    """Adds trainings to a folder; each method gives the names of what it added or found there."""

    def __init__(self, collected: Collected):
        self.collected = collected
        self.spec, self.layout = collected.spec, collected.layout

    # SFT

    def sft(self, arm: str) -> str:
        """Vanilla SFT."""
        return self._train("sft", arm, self._sft_keys(), ["Vanilla SFT on all instruction data."])

    def sft_sparse(self, arm: str, settings: Sparse) -> str:
        """SFT with the L1 penalty."""
        purpose = "SFT with an L1 penalty on the delta, which makes it sparse (PAFT section 2.3, equation 1)."
        return self.penalised(arm, "sft-sparse", settings.sparse_keys, purpose)

    def penalised(
        self, arm: str, wanted: str, penalty: dict[str, Any], purpose: str, *, needs: Sequence[str] = ()
    ) -> str:
        """SFT with ``delta_*`` keys."""
        keys = {**self._sft_keys(*self._dispersed(), PENALTY), **penalty, **penalty_keys(self.spec)}
        return self._train(wanted, arm, keys, [purpose], needs=needs)

    def clusters(self, arm: str, settings: Dtm) -> list[str]:
        """The K sub-models of a dispersal."""
        sparse = settings.sparse_keys if isinstance(settings, DtmPaft) else {}
        plain = arm == settings.arm
        wanted = "cluster-sparse" if sparse else "cluster"
        disperse = self._disperse(arm, settings)
        assignment = f"{self.layout.output(disperse)}/assignment.parquet"
        found = []
        for index in range(settings.clusters):
            plugins = (DISPERSE, *((PENALTY,) if sparse else ()))
            keys = {
                **self._sft_keys(*plugins),
                **settings.disperse_keys,
                "disperse_cluster": index,
                "disperse_assignment": assignment,
                **({**sparse, **penalty_keys(self.spec)} if sparse else {}),
            }
            purpose = [
                f"SFT sub-model {index + 1} of {settings.clusters}: trains on cluster {index} only.",
                "Disperse-Then-Merge, section 4.2" + ("; with PAFT's L1 penalty." if sparse else "."),
            ]
            name = f"{wanted}-{index}" if plain else f"{wanted}-{index}-{arm}"
            found.append(self._train(name, arm, keys, purpose, needs=(disperse,), share=1 / settings.clusters))
            self._config_of(disperse, found[0])
        return found

    def soup_run(self, arm: str, settings: Soup, index: int) -> str:
        """One run of a soup; one that differs in nothing is vanilla SFT."""
        differing = settings.runs[index]
        if not differing:
            return self.sft(arm)
        keys = self._sft_keys(*self._dispersed(), over=differing)
        keys |= prepared_apart(self._sft_keys(), differing)
        purpose = [
            f"Run {index + 1} of {len(settings.runs)} of a soup: SFT on all instruction data with "
            f"{', '.join(f'{key} {value}' for key, value in differing.items())}.",
            "The baseline Uniform Soup of Disperse-Then-Merge, table 1; which hyper-parameters differ is ours.",
        ]
        return self._train(f"{arm}-{index}", arm, keys, purpose)

    def replayed(self, arm: str, settings: Replay) -> str:
        """SFT on instruction data with pretraining text mixed in."""
        wanted = "sft-replay" if arm == settings.arm else f"sft-replay-{arm}"
        config = self.layout.recipe(wanted)
        how = ["--like", config, "--ratio", f"{settings.ratio:g}"]
        text = self._replay_text("replay-text", arm, how, config=config)
        file = f"{self.layout.output(text)}/{REPLAY_FILE}"
        keys = self._sft_keys(*self._dispersed())
        keys["datasets"] = [*(self.spec.sft or []), {"path": file, "type": "completion", "field": "text"}]
        purpose = [
            f"SFT with pretraining text mixed in, {settings.ratio:g} rows for each row of instruction data.",
            "The baseline Replay of Disperse-Then-Merge, table 1 and section 3.1.",
        ]
        return self._train(wanted, arm, keys, purpose, needs=(text,))

    # Preference

    def preference(self, arm: str, method: str, *, start: str | None = None, ending: str = "") -> str:
        """Preference training from the base, or from the model of the node ``start``."""
        base = self.spec.base if start is None else self.layout.output(start)
        keys = {
            "datasets": preference_datasets(self.spec, method),
            **self._common_keys(base, preference_keys(self.spec, method)),
        }
        keys["plugins"] = with_plugins([MANIFEST], keys.get("plugins"))
        if start is None:
            purpose = "Preference training from the base model, in parallel with SFT (PAFT section 2.2)."
            return self._train(method, arm, keys, [purpose])
        purpose = "Sequential baseline (PAFT section 3.2): preference training that starts from the SFT model."
        return self._train(f"{method}-{ending}", arm, keys, [purpose], needs=(start,))

    # What comes before

    def base_fisher(self, arm: str, settings: Ewc) -> tuple[str, tuple[str, ...]]:
        """The base's Fisher information on pretraining text: its file, and the node to wait for."""
        text = self._replay_text("fisher-text", arm, ["--rows", str(settings.samples), *self._length()])
        data = f"{self.layout.output(text)}/{REPLAY_FILE}"
        return self._statistic("fisher", "fisher", arm, self.spec.base, data, settings.samples, needs=(text,))

    def statistics(self, arm: str, command: str, adapter: str, data: str) -> tuple[str, str]:
        """What a merge weighs an adapter by: the node and its file."""
        model = f"{self.spec.base}+{local(self.layout.output(adapter))}"
        file, needs = self._statistic(f"{command}-{adapter}", command, arm, model, data, None, needs=(adapter,))
        return needs[0], file

    def _statistic(
        self, wanted: str, command: str, arm: str, model: str, data: str, samples: int | None, *, needs: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        def node(name: str) -> Node:
            output = self.layout.output(name)
            dtype = ("--dtype", "bfloat16") if self.spec.device == "cuda" else ()
            chosen = () if samples is None else ("--samples", str(samples))
            reading = (*chosen, *self._length(), "--seed", str(self.spec.seed), "--device", self.spec.device, *dtype)
            file = f"{output}/{command}.safetensors"
            typed = ("untax", command, model, "--data", data, *reading, "-o", file)
            return Node(name, "fisher", typed, (output,), None, needs)

        name = self.collected.stage(wanted, arm, node, [command, model, data, samples])
        return f"{self.layout.output(name)}/{command}.safetensors", (name,)

    def _replay_text(self, wanted: str, arm: str, how: Sequence[str], *, config: str | None = None) -> str:
        texts = _text_options(self.spec.replay or [])

        def node(name: str) -> Node:
            output = self.layout.output(name)
            typed = ("untax", "replay", *texts, "--base", self.spec.base, *how, "--seed", str(self.spec.seed))
            return Node(name, "replay", (*typed, "-o", output), (output,), config)

        return self.collected.stage(wanted, arm, node, [texts, self.spec.base, list(how), self.spec.seed])

    def _length(self) -> list[str]:
        length = sft_keys(self.spec).get("sequence_len")
        return [] if length is None else ["--sequence-len", str(length)]

    def _disperse(self, arm: str, settings: Dtm) -> str:
        wanted = "disperse" if arm == settings.arm else f"disperse-{arm}"

        def node(name: str) -> Node:
            return Node(name, "disperse", (), (self.layout.output(name),))

        return self.collected.stage(wanted, arm, node, settings.disperse_keys)

    def _config_of(self, disperse: str, cluster: str) -> None:
        """The dispersal reads its settings from the first sub-model's YAML."""
        node, config = self.collected.nodes[disperse], self.layout.recipe(cluster)
        if node.config is None:
            command = ("untax", "disperse", config)
            self.collected.nodes[disperse] = dataclasses.replace(node, command=command, config=config)

    # Keys

    def _train(
        self,
        wanted: str,
        arm: str,
        keys: dict[str, Any],
        purpose: list[str],
        *,
        needs: Sequence[str] = (),
        share: float = 1.0,
    ) -> str:
        return self.collected.training(wanted, arm, keys, purpose=purpose, needs=needs, share=share)

    def _common_keys(self, base: str, training: dict[str, Any]) -> dict[str, Any]:
        """The recipe's own settings, then what the device needs where the recipe says nothing."""
        return {
            "base_model": base,
            "dataset_prepared_path": self.layout.output("prepared"),
            **unless_given(values(device_settings(self.spec.device)), training, self.spec.device),
            "seed": self.spec.seed,
            "logging_steps": 1,
            **training,
        }

    def _dispersed(self) -> tuple[str, ...]:
        """The plugin that cuts dialogues to their first turn, where the recipe wants that."""
        return (DISPERSE,) if self.spec.first_turn else ()

    def _sft_keys(self, *plugins: str, over: dict[str, Any] | None = None) -> dict[str, Any]:
        first_turn = {"disperse_first_turn": True} if self.spec.first_turn else {}
        keys = {
            **first_turn,
            "datasets": self.spec.sft,
            **self._common_keys(self.spec.base, {**sft_keys(self.spec), **(over or {})}),
        }
        own = plugins or self._dispersed() or (MANIFEST,)
        return {**keys, "plugins": with_plugins(own, keys.get("plugins"))}


def _text_options(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Entries of texts as the options of ``untax replay``; beside their paths they say the same."""
    options = {"split": "--split", "name": "--name", "field": "--column", "separator": "--separator"}
    paths = [part for entry in entries for part in ("--texts", str(entry["path"]))]
    return [
        *paths,
        *(
            part
            for key, option in options.items()
            for entry in entries[:1]
            if key in entry
            for part in (option, str(entry[key]))
        ),
    ]
