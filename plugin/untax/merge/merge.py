"""One merge from YAML to folder: checked, cached by content, published whole or not at all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import digest_bytes, model_digest_is_known, write_manifest
from untax.merge import checks, place
from untax.merge.adapter_merge import AdapterMerge
from untax.merge.asked import as_json
from untax.merge.card import model_card
from untax.merge.config_file import MergeConfig, read_merge_config
from untax.merge.kind import Kind, Made
from untax.merge.mergekit_merge import ASKED_FOR, MergekitMerge
from untax.merge.options import Options, read_options
from untax.merge.plan import why_mergekit
from untax.merge.stream_merge import StreamMerge

Say = Callable[[str], None]
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], object]]]


@contextlib.contextmanager
def silent(total: int) -> Iterator[Callable[[int], object]]:
    """No progress shown."""
    yield lambda count: None


@dataclass(frozen=True)
class Wish:
    """What is asked for beside the YAML.

    Attributes:
        scales: what the merged delta is multiplied by; one output for each.
        engine: ``stream``, ``mergekit``, or ``auto``: the first that can.
        as_adapter: write a LoRA adapter, not a model.
        rank: of that adapter; None for the sum of the ranks, which is exact.
        force: replace what the output holds.
        dry_run: check and tell, but write nothing.
    """

    scales: Sequence[float] = (1.0,)
    engine: str = "auto"
    as_adapter: bool = False
    rank: int | None = None
    force: bool = False
    dry_run: bool = False


def merge(
    config_path: Path,
    out: Path,
    arguments: Sequence[str],
    wish: Wish | None = None,
    *,
    say: Say = print,
    progress: Progress = silent,
) -> list[Path]:
    """Merge the models that a mergekit YAML names.

    Args:
        config_path: the YAML.
        out: the folder to make; with several scales, what their folders' names begin with.
        arguments: options of mergekit-yaml, each as one string: ``--random-seed=3``, ``--cuda``.
        wish: what else is asked for.
        say: called with each sentence for the user.
        progress: called with the bytes that will be written; entered, it gives what is called with those that were.

    Returns:
        The folders that were made; those that hold this very merge already are left out.

    Raises:
        UntaxError: an input, the configuration or an output folder is not as it must be; nothing was written.
    """
    wish = wish or Wish()
    options = read_options(arguments)
    config = read_merge_config(config_path)
    _check_wish(wish, config)
    crimes = options["allow_crimes"]
    own_tokenizer = bool(config.raw.get("tokenizer_source") or config.raw.get("tokenizer"))
    checks.check_inputs(config.references, crimes=crimes, tokenizers=not own_tokenizer)
    checks.check_values(config.raw, where=config.path)
    kind = _kind(config, options, wish)
    if options["copy_tokenizer"] and not own_tokenizer and kind.what == "model":
        checks.check_has_tokenizer(config.references[0].base.folder)
    if options["transformers_cache"]:
        say("Note: --transformers-cache has no effect: models of the hub are looked for where HF_HUB_CACHE says.")
    for note in kind.notes():
        say(f"Note: {note}")
    outs = [output_name(out, scale, wish.scales) for scale in wish.scales]
    checks.check_outputs(outs, config.references)
    return _Merge(config, options, wish, kind, say, progress, time.time()).into(outs)


def output_name(out: Path, scale: float, scales: Sequence[float]) -> Path:
    """OUT itself for a single scale and for 1; OUT-0.5 and so on among several."""
    return out if len(scales) == 1 or scale == 1 else out.with_name(f"{out.name}-{scale:g}")


def _check_wish(wish: Wish, config: MergeConfig) -> None:
    if not wish.scales or len(set(wish.scales)) != len(wish.scales):
        raise UntaxError("A scale is given twice.", where="--scale", fix="Give each once.")
    if not all(abs(scale) < 1e38 for scale in wish.scales):
        raise UntaxError("A scale is no number, or no number of fp32.", where="--scale", fix="Give 0.5, for instance.")
    if len({output_name(config.path, scale, wish.scales) for scale in wish.scales}) != len(wish.scales):
        raise UntaxError(
            "Two scales have the same first six digits.", where="--scale", fix="Merge one after the other."
        )
    if wish.rank is not None and not wish.as_adapter:
        raise UntaxError("A merged model has no rank.", where="--rank", fix="Add --as-adapter, or leave --rank out.")
    if wish.as_adapter and wish.engine == "mergekit":
        raise UntaxError("mergekit makes no adapters.", where="--engine mergekit", fix="Leave one of both out.")
    if wish.as_adapter and not any(reference.adapter for reference in config.references):
        raise UntaxError("There is no adapter among the models.", where=config.path, fix="Write `model: base+adapter`.")


def _kind(config: MergeConfig, options: Options, wish: Wish) -> Kind:
    reason = why_mergekit(config, options)
    if reason is not None and (wish.as_adapter or wish.engine == "stream"):
        what = "An adapter cannot be made" if wish.as_adapter else "This merge cannot be streamed"
        raise UntaxError(
            f"{what} from {reason}.",
            where=config.path,
            fix="Merge adapters of one base by linear or task_arithmetic."
            if wish.as_adapter
            else "Leave --engine stream out: mergekit itself merges then.",
        )
    if wish.as_adapter:
        return AdapterMerge(config, options, wish.rank)
    if reason is None and wish.engine != "mergekit":
        return StreamMerge(config, options)
    return MergekitMerge(config, options, reason or ASKED_FOR)


@dataclass(frozen=True)
class _Merge:
    config: MergeConfig
    options: Options
    wish: Wish
    kind: Kind
    say: Say
    progress: Progress
    started: float

    def into(self, outs: Sequence[Path]) -> list[Path]:
        """Make the outputs that are not there yet."""
        for out in () if self.wish.dry_run else outs:
            place.remove_stale(out.resolve())
        early = not self.kind.defers_digests or any(out.exists() for out in outs) or self._digests_are_known()
        identity = self._identity() if early or self.wish.dry_run else None
        if identity is None and not self.options["allow_crimes"]:
            checks.check_bases(self.config.references, by_name=True)
        wanted = [self._wanted(identity, scale) for scale in self.wish.scales]
        done = [place.is_done(out, section, force=self.wish.force) for out, section in zip(outs, wanted, strict=True)]
        missing = [index for index, finished in enumerate(done) if not finished]
        for out in (out for out, finished in zip(outs, done, strict=True) if finished):
            self.say(f"{out} holds this merge already: nothing to do.")
        size = self.kind.bytes_needed() * len(missing)
        if missing:
            place.check_room(outs[missing[0]], size)
        if self.wish.dry_run:
            self._describe([outs[index] for index in missing], size)
        elif missing:
            self._make([outs[index] for index in missing], [self.wish.scales[index] for index in missing])
            return [outs[index] for index in missing]
        return []

    def _digests_are_known(self) -> bool:
        return all(model_digest_is_known(reference.base.path) for reference in self.config.references)

    def _identity(self) -> dict[str, Any]:
        """What a merge is made from; reads the bases unless their digests are known."""
        read = self.kind.what == "model"
        if not self.options["allow_crimes"]:
            checks.check_bases(self.config.references, read=read)
        return {
            "config": {
                "path": str(self.config.path),
                "digest": digest_bytes(self.config.text.encode()),
                "keys": as_json(self.config.raw),
            },
            "options": self.options.identity(),
            "inputs": checks.input_digests(self.config.references, read=read) | checks.side_digests(self.config.raw),
        }

    def _wanted(self, identity: dict[str, Any] | None, scale: float) -> dict[str, Any]:
        how = {**self.kind.identity(), "scale": scale}
        return {**(identity or {}), "how": how}

    def _describe(self, outs: Sequence[Path], size: int) -> None:
        for sentence in self.kind.describe():
            self.say(sentence)
        for out in outs:
            self.say(f"Would {'replace' if out.exists() and any(out.iterdir()) else 'write'} {out}.")
        self.say(f"{size / 1e6:,.1f} MB in all; nothing was written.")

    def _make(self, outs: Sequence[Path], scales: Sequence[float]) -> None:
        with contextlib.ExitStack() as stack:
            whole = [out.resolve() for out in outs]
            parts = [stack.enter_context(place.output_folder(out, replace=self.wish.force)) for out in whole]
            progress = self.progress if self.kind.shows_progress else silent
            with progress(self.kind.bytes_needed()) as advance:
                made = self.kind.write(parts, scales, [out.name for out in whole], advance)
            # Only now are the digests of a large base known: they were taken while it was read.
            identity = self._identity()
            for index, (part, scale) in enumerate(zip(parts, scales, strict=True)):
                self._finish(part, whole[index].name, self._wanted(identity, scale), made, made.digests[index])
        for note in made.notes:
            self.say(f"Note: {note}")

    def _finish(self, part: Path, name: str, sections: dict[str, Any], made: Made, digests: dict[str, str]) -> None:
        facts = {**made.facts, "scale": sections["how"]["scale"]}
        if self.options["write_model_card"]:
            shown = self.kind.card(facts) | ({} if facts["scale"] == 1 else {"Scale": f"{facts['scale']:g}"})
            references, inputs = self.config.references, sections["inputs"]
            card = model_card(name, references, inputs, self.config.text, shown, self.kind.what)
            (part / "README.md").write_text(card, encoding="utf-8")
            (part / "mergekit_config.yml").write_text(self.config.text, encoding="utf-8")
        write_manifest(
            part,
            what=self.kind.what,
            # The card is the user's to edit.
            outputs=[file.name for file in part.iterdir() if file.name != "README.md"],
            started=self.started,
            digests=digests,
            **sections,
            seed=self.options.seed,
            merge=facts,
        )
