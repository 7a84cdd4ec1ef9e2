"""What a plan collects: each YAML and node once, however many arms need it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from untax.manifest import digest_bytes
from untax.recipes import axolotl_yaml, mergekit_yaml
from untax.recipes.axolotl_yaml import dump
from untax.recipes.checks import OWN_PLUGINS
from untax.recipes.graph import Layout, Node
from untax.recipes.mergekit_yaml import Merge
from untax.recipes.papers import origin, unless_given
from untax.recipes.spec import RunSpec

UNCACHED = (
    *("seed", "shuffle_merged_datasets", "shuffle_before_merging_datasets", "curriculum_sampling"),
    *("excess_length_strategy", "min_sample_len"),
)
"""Keys that decide the tokenised rows or their order, and by which Axolotl's cache of them is not keyed."""


class TwoOutputs(ValueError):
    """Two arms would write one folder."""


@dataclasses.dataclass
class Collected:
    """Nodes and YAMLs of a run folder, as its arms ask for them.

    What is asked for again, with the same content, is there already; the first name stays.

    Attributes:
        spec: the recipe.
        folder: the run folder as the user would type it.
        layout: where things lie.
        files: relative path -> text.
        nodes: by name.
    """

    spec: RunSpec
    folder: str
    layout: Layout
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    nodes: dict[str, Node] = dataclasses.field(default_factory=dict)
    _known: dict[str, str] = dataclasses.field(default_factory=dict)
    _owner: dict[str, str] = dataclasses.field(default_factory=dict)

    def training(
        self,
        wanted: str,
        arm: str,
        keys: dict[str, Any],
        *,
        purpose: list[str],
        needs: Sequence[str] = (),
        share: float = 1.0,
    ) -> str:
        """Add a training and return its node's name.

        Args:
            wanted: the name, if no training of other content has it; else the arm's name is put behind.
            arm: the arm that asks.
            keys: Axolotl's keys without ``output_dir``.
            purpose: what it is for, one line each.
            needs: nodes before it.
            share: the share of the data that it trains on.
        """
        known, name = self._claim(wanted, f"{wanted}-{arm}", arm, ["train", keys])
        if known:
            return name
        own = self.spec.nodes.get(name)
        keys = {**_overlaid(keys, own.axolotl if own else {}, self.spec.device), "output_dir": self.layout.output(name)}
        config = self.layout.recipe(name)
        command = ("axolotl", "train", config, *self._launcher())
        self.files[config] = axolotl_yaml.render(
            keys,
            purpose=purpose,
            needs=self._needed(needs),
            command=self.launch(command),
            origin=self._origin(keys),
        )
        gpus = (own.gpus if own else None) or self.spec.gpus
        node = Node(name, "train", command, (keys["output_dir"],), config, tuple(needs), share, gpus=gpus)
        self.nodes[name] = node
        return name

    def merge(self, wanted: str, arm: str, merge: Merge, *, purpose: list[str], needs: Sequence[str]) -> str:
        """Add a merge and return its node's name.

        Raises:
            TwoOutputs: another merge, or a training, has the name.
        """
        known, name = self._claim(wanted, wanted, arm, ["merge", dataclasses.asdict(merge)])
        if known:
            return name
        config, output = self.layout.config(name), self.layout.output(name)
        tool = ("untax", "merge") if merge.method in mergekit_yaml.OWN else ("mergekit-yaml",)
        made_here = [merge.base] if merge.base != self.spec.base else []
        self.files[config] = mergekit_yaml.render(
            merge,
            purpose=purpose,
            needs=", ".join([*made_here, *merge.models, *merge.statistics]),
            command=self.launch((*tool, config, output)),
        )
        self.nodes[name] = Node(name, "merge", ("untax", "merge", config, output), (output,), config, tuple(needs))
        return name

    def stage(self, wanted: str, arm: str, node: Callable[[str], Node], content: Any) -> str:
        """Add a node of another kind, made for the name that it gets, and return that name."""
        known, name = self._claim(wanted, f"{wanted}-{arm}", arm, ["stage", content])
        if not known:
            self.nodes[name] = node(name)
        return name

    def launch(self, command: Sequence[str]) -> str:
        """The command as it is typed anywhere."""
        return f"cd {shlex.quote(self.folder)} && {shlex.join(command)}"

    def _claim(self, wanted: str, other: str, arm: str, content: Any) -> tuple[bool, str]:
        """Whether this very thing is there already, and its name, new or old."""
        digest = digest_bytes(dump(content).encode())
        if digest in self._known:
            return True, self._known[digest]
        name = next((name for name in (wanted, other) if name not in self.nodes), None)
        if name is None:
            raise TwoOutputs(
                f"arms.{self._owner[wanted]} and arms.{arm} both write {self.layout.output(wanted)}: "
                "give one of them, or its merge, another name"
            )
        self._known[digest], self._owner[name] = name, arm
        return False, name

    def _needed(self, needs: Sequence[str]) -> str:
        kinds = {need: self.nodes[need].kind for need in needs}
        return (
            ", ".join(
                f"{need} (`untax disperse` makes it; else this training does)"
                if kinds[need] == "disperse"
                else self.layout.output(need)
                for need in needs
            )
            or "nothing but the base model and the data"
        )

    def _launcher(self) -> list[str]:
        launcher = self.spec.launcher or ("python" if self.spec.device == "cpu" else None)
        chosen = ["--launcher", launcher] if launcher else []
        return [*chosen, *(["--", *self.spec.launcher_args] if self.spec.launcher_args else [])]

    def _origin(self, keys: dict[str, Any]) -> Callable[[str, Any], str]:
        kind = str(keys.get("rl") or "sft")
        return partial(origin, settings=self.spec.settings, kind=kind, device=self.spec.device)


def with_plugins(own: Sequence[str], listed: Sequence[str] | None) -> list[str]:
    """untax's own plugins, then those that the recipe lists; which of untax's are there, the plan says."""
    return list(dict.fromkeys([*own, *(plugin for plugin in listed or [] if plugin not in OWN_PLUGINS)]))


def _overlaid(keys: dict[str, Any], over: dict[str, Any], device: str) -> dict[str, Any]:
    plugins = {"plugins": with_plugins(keys["plugins"], over.get("plugins"))} if "plugins" in over else {}
    return {**unless_given(keys, over, device), **prepared_apart(keys, over), **over, **plugins}


def prepared_apart(keys: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A folder of its own for the tokenised data of a training whose rows, or their order, are not the others'.

    Args:
        keys: Axolotl's keys of such trainings.
        over: what this one has instead.
    """
    differing = {key: over[key] for key in UNCACHED if key in over and over[key] != keys.get(key)}
    if not differing:
        return {}
    return {"dataset_prepared_path": f"{keys['dataset_prepared_path']}/{digest_bytes(dump(differing).encode())[:8]}"}
