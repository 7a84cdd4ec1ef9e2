"""mergekit's options without mergekit: the same names, kinds and defaults."""

from __future__ import annotations

import click
import pytest

from untax.errors import UntaxError
from untax.merge.options import DEFAULT_SEED, FLAGS, VALUES, read_options


def test_the_table_is_mergekits() -> None:
    from mergekit.options import MergeOptions

    fields = MergeOptions.model_fields
    flags = {name: field.default for name, field in fields.items() if field.annotation is bool}
    assert flags.pop("gpu_rich") is False
    assert flags == FLAGS
    assert set(fields) - set(flags) - {"gpu_rich", "verbosity"} == set(VALUES)


@pytest.mark.parametrize("text", ["5B", "10K", "3m", "4096"])
def test_sizes_are_mergekits(text: str) -> None:
    from mergekit.common import parse_kmb

    assert read_options([f"--out-shard-size={text}"]).shard_bytes == parse_kmb(text)


def test_defaults() -> None:
    options = read_options([])
    assert options.seed == DEFAULT_SEED
    assert options.shard_bytes is None
    assert options.identity() == []
    assert not options.on_gpu


def test_identity_is_what_decides_the_output_in_one_spelling() -> None:
    assert read_options(["-v", "--quiet", "-j", "3", "--write-threads=2"]).identity() == []
    spelled = [["--random-seed=3", "--allow-crimes"], ["--allow-crimes", "--random-seed", "3"]]
    assert [read_options(one).identity() for one in spelled] == [["allow_crimes=True", "random_seed=3"]] * 2
    assert read_options([f"--random-seed={DEFAULT_SEED}", "--device=cpu", "--no-cuda"]).identity() == []
    sizes = [read_options([f"--out-shard-size={size}"]).identity() for size in ("10K", "10k", "10000")]
    assert sizes == [["out_shard_size=10000"]] * 3
    assert read_options(["--device=cuda:1"]).identity() == ["device=cuda:1"]


@pytest.mark.parametrize(
    ("argument", "on_gpu"),
    [("--cuda", True), ("--gpu-rich", True), ("--device=cuda:1", True), ("--device=cpu", False), ("--no-cuda", False)],
)
def test_gpu(argument: str, on_gpu: bool) -> None:
    assert read_options([argument]).on_gpu is on_gpu


@pytest.mark.parametrize("argument", ["--no-safe-serialization", "--out-shard-size=5X", "--out-shard-size=0"])
def test_refused(argument: str) -> None:
    with pytest.raises(UntaxError):
        read_options([argument])


def test_unknown_option() -> None:
    with pytest.raises(click.ClickException, match="No such option"):
        read_options(["--alow-crimes"])
