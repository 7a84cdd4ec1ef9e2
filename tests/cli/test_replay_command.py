"""``untax replay`` as a command, and its rows in a real training by Axolotl."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toys import BASE, Workspace, sft_rows, write_jsonl
from untax.cli.main import main
from untax.data.completion import load_completion
from untax.recipes.graph import Node
from untax.run.done import unfinished

STORY = "Lily saw a cat number {}. The cat was very happy, and it ran to the park to play with a ball. "
MIXED = [
    {"path": "sft.jsonl", "type": "alpaca"},
    {"path": "outputs/replay-text/replay.jsonl", "type": "completion", "field": "text"},
]
OUT = Path("outputs/replay-text")


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    """The command silences what others log."""
    import logging

    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def stories(workspace: Workspace) -> Path:
    """40 texts, of which every fourth is longer than a row of 96 tokens, and of 256."""
    texts = [STORY.format(index) * (8 if index % 4 == 0 else 1) for index in range(40)]
    return write_jsonl(workspace.folder / "stories.jsonl", [{"text": text, "id": 1} for text in texts])


@pytest.fixture
def mixed(workspace: Workspace) -> Path:
    """The YAML of a training on 24 instruction rows and the replay text."""
    return workspace.config("mixed.yaml", datasets=MIXED, sequence_len=256, plugins=["untax.ManifestPlugin"])


def replay(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0, out: Path = OUT) -> str:
    """What was printed to either stream."""
    saved = sys.argv
    sys.argv = ["untax", "replay", *map(str, arguments), "-o", str(out)]
    status: object = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = saved
    captured = capsys.readouterr()
    assert status == code, captured
    return captured.out + captured.err


def written(out: Path = OUT) -> list[str]:
    return [json.loads(line)["text"] for line in (out / "replay.jsonl").read_text().splitlines()]


def manifest(out: Path = OUT) -> dict[str, Any]:
    return json.loads((out / "untax.json").read_text())


def prepared_rows(folder: Path) -> list[dict[str, Any]]:
    """What Axolotl tokenised."""
    from datasets import load_from_disk

    (state,) = folder.glob("prepared/**/state.json")
    return load_from_disk(str(state.parent)).to_list()


def test_as_many_rows_as_the_instruction_data_has(capsys: Any, stories: Path, mixed: Path) -> None:
    said = replay(capsys, "--texts", stories, "--like", mixed)
    assert "The instruction data has 24 rows; 1 times that is wanted." in said
    assert f"{OUT}/replay.jsonl: 24 rows, " in said
    completion = load_completion({"base_model": str(BASE)}, 256)
    rows = written()
    lengths = [completion.rows(text) for text in rows]
    assert len(set(rows)) == len(rows) == 24
    assert all(len(own) == 1 and own[0] <= 256 for own in lengths)
    found = manifest()
    assert found["what"] == "replay"
    assert found["replay"]["rows"] == found["replay"]["instruction_rows"] == 24
    assert found["replay"]["tokens"] == sum(own[0] for own in lengths)
    assert set(found["inputs"]) == {"tokenizer", f"texts/{stories}", "datasets/sft.jsonl"}
    assert found["request"]["sequence_len"] == 256


def test_the_second_call_does_nothing_and_another_one_is_refused(capsys: Any, stories: Path, mixed: Path) -> None:
    given = ("--texts", stories, "--like", mixed)
    replay(capsys, *given)
    before = {path: path.read_bytes() for path in OUT.iterdir()}
    assert "nothing to do" in replay(capsys, *given)
    assert {path: path.read_bytes() for path in OUT.iterdir()} == before
    assert "its seed is 42" in replay(capsys, *given, "--seed", 1, code=2)
    assert "asked for otherwise (ratio)" in replay(capsys, *given, "--ratio", 0.5, code=2)
    write_jsonl(Path("sft.jsonl"), sft_rows(25))
    assert "datasets/sft.jsonl was changed" in replay(capsys, *given, code=2)
    assert {path: path.read_bytes() for path in OUT.iterdir()} == before
    replay(capsys, *given, "--force")
    assert len(written()) == 25
    (OUT / "replay.jsonl").write_text("{}")
    assert "replay.jsonl was changed or removed" in replay(capsys, *given, code=2)


def test_the_seed_decides_and_neither_the_order_of_texts_nor_of_files(capsys: Any, stories: Path) -> None:
    given = ("--base", BASE, "--rows", 12, "--sequence-len", 96)
    replay(capsys, "--texts", stories, *given)
    lines = stories.read_text().splitlines(keepends=True)
    Path("one.jsonl").write_text("".join(lines[:20:-1]))
    Path("two.jsonl").write_text("".join(lines[:21]))
    replay(capsys, "--texts", "one.jsonl", "--texts=two.jsonl", *given, out=Path("other"))
    assert (OUT / "replay.jsonl").read_bytes() == Path("other/replay.jsonl").read_bytes()
    replay(capsys, "--texts", stories, *given, "--seed", 1, out=Path("seeded"))
    assert set(written(Path("seeded"))) != set(written())


def test_later_pieces_and_too_few_texts(capsys: Any, stories: Path) -> None:
    given = ("--texts", stories, "--base", BASE, "--sequence-len", 96)
    said = replay(capsys, *given, "--rows", 50)
    assert "50 rows, 10 of them further pieces" in said
    assert len(set(written())) == 50
    assert manifest()["replay"] | {"tokens": 0} == {
        "rows": 50,
        "tokens": 0,
        "texts": 40,
        "later_pieces": 10,
        "every_text": True,
    }
    said = replay(capsys, *given, "--rows", 5000, out=Path("more"), code=2)
    assert "There are 40 different texts" in said
    assert "5,000 are wanted. No text is repeated." in said
    assert not Path("more").exists()


@pytest.mark.parametrize("like", [(), ("--base", str(BASE), "--sequence-len=64")])
def test_a_run_finds_it_finished(capsys: Any, stories: Path, workspace: Workspace, like: tuple[str, ...]) -> None:
    """Its manifest is what the run engine asks for, also of keys that JSON writes otherwise than YAML."""
    config = workspace.config("like.yaml", datasets=MIXED, added_tokens_overrides={0: "<zero>"})
    command = ("untax", "replay", "--texts", stories.name, "--like", config.name, *like, "-o", str(OUT))
    node = Node("replay-text", "replay", command, (str(OUT),), config.name)
    assert unfinished(node, workspace.folder, None) == f"{OUT}: not made yet"
    replay(capsys, *command[2:-2])
    assert unfinished(node, workspace.folder, None) is None
    workspace.config("like.yaml", datasets=MIXED, added_tokens_overrides={0: "<none>"})
    assert unfinished(node, workspace.folder, None) == f"{OUT}: like.yaml was changed"


def test_by_tokens(capsys: Any, stories: Path, mixed: Path) -> None:
    replay(capsys, "--texts", stories, "--like", mixed, "--by", "tokens", "--ratio", 0.5)
    tokenizer = load_completion({"base_model": str(BASE)}, 256).tokenizer
    expected = sum(
        min(256, len(tokenizer(f"{row['instruction']}\n{row['output']}")["input_ids"])) for row in sft_rows(24)
    )
    facts = manifest()["replay"]
    assert facts["instruction_tokens"] == expected
    assert 0 <= facts["tokens"] - round(expected / 2) < 256


def test_only_complete_first_turns_count(capsys: Any, stories: Path, workspace: Workspace) -> None:
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    write_jsonl(workspace.folder / "chat.jsonl", [{"messages": [question, answer]}] * 3 + [{"messages": [answer]}] * 4)
    chat, plain = {"path": "chat.jsonl", "type": "alpaca"}, {"path": str(stories), "type": "completion"}
    replay(capsys, "--texts", stories, "--like", workspace.config(datasets=[chat], disperse_first_turn=True))
    assert len(written()) == 3
    config = workspace.config(datasets=[chat, plain], disperse_first_turn=True)
    replay(capsys, "--texts", stories, "--like", config, "--ratio", 0.1, out=Path("other"))
    assert manifest(Path("other"))["replay"]["instruction_rows"] == 3 + 40


def test_datasets_are_streamed(capsys: Any, stories: Path) -> None:
    Path("set").mkdir()
    stories.rename("set/train.jsonl")
    (Path.cwd() / "more.txt").write_text("\n\n".join(f"Tom had {index} dogs." for index in range(30)))
    given = ("--texts", "set", "--texts", "more.txt", "--base", BASE, "--rows", 21)
    said = replay(capsys, *given)
    assert "11 rows of more.txt" in said
    assert "10 rows of set" in said
    assert sum("dogs" in text for text in written()) == 11
    replay(capsys, *given, out=Path("again"))
    assert written(Path("again")) == written()


def test_a_dry_run_writes_nothing(capsys: Any, stories: Path, mixed: Path, workspace: Workspace) -> None:
    before = workspace.files()
    said = replay(capsys, "--texts", stories, "--like", mixed, "--ratio", 0.25, "--dry-run")
    assert f"6 rows of {stories}" in said
    assert workspace.files() == before
    assert not OUT.exists()


def test_in_a_training_the_rows_are_one_each_and_trained_on_whole(
    capsys: Any, stories: Path, mixed: Path, workspace: Workspace, axolotl_train: Callable[[Path], None]
) -> None:
    """24 instruction rows, whose prompts are masked, and 24 rows of text, of which nothing is."""
    replay(capsys, "--texts", stories, "--like", mixed)
    axolotl_train(mixed)
    assert workspace.manifest()["training"]["rows"] == 24 + 24
    assert "datasets/outputs/replay-text/replay.jsonl" in workspace.manifest()["inputs"]
    rows = prepared_rows(workspace.folder)
    completion = load_completion({"base_model": str(BASE)}, 256)
    expected = {tuple(completion.strategy.tokenize_prompt({"text": [text]})["input_ids"][0]) for text in written()}
    trained = [row for row in rows if tuple(row["input_ids"]) in expected]
    assert len(rows) == 48
    assert len(trained) == 24
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) <= 256 for row in trained)
    instructions = [row for row in rows if tuple(row["input_ids"]) not in expected]
    assert all(row["labels"][0] == -100 and row["labels"][-1] != -100 for row in instructions)


@pytest.mark.parametrize("name", ["c4_demo.jsonl.gz", "tinystories_2mb.txt.gz", "wikitext2_valid.txt.gz"])
def test_real_texts_become_as_many_training_rows(
    capsys: Any, name: str, workspace: Workspace, axolotl_preprocess: Callable[[Path], None]
) -> None:
    real = Path(__file__).resolve().parents[3] / "shared" / "data" / "replay" / name
    if not real.exists():
        pytest.skip("the real pretraining texts (../shared/data/replay) are not here")
    replay(capsys, "--texts", real, "--base", BASE, "--sequence-len", 128, "--rows", 320)
    axolotl_preprocess(workspace.config("only.yaml", datasets=MIXED[1:], sequence_len=128, plugins=None))
    rows = prepared_rows(workspace.folder)
    assert len(rows) == len(written()) == 320
    assert sum(len(row["input_ids"]) for row in rows) == manifest()["replay"]["tokens"]
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) <= 128 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--texts", "missing.txt"], "no such file or folder"),
        (["--texts", "stories.jsonl", "--column", "story"], "no column 'story', only text, id"),
        (["--texts", "stories.jsonl", "--column", "id"], "holds a int, not text"),
        (["--texts", "stories.jsonl", "--column", "text", "--column", "id"], "2 values of --column for 1 texts"),
        (["--texts", "blank.txt"], "all are empty"),
        (["--texts", "stories.jsonl", "--base", "no/such-model"], "tokenizer cannot be loaded"),
        (["--texts", "stories.jsonl", "--base", "bare"], "tokenizer cannot be loaded"),
        (["--texts", "stories.jsonl", "--like", "missing.yaml"], "no such YAML"),
        (["--texts", "stories.jsonl", "--sequence-len", "3"], "3 is not in the range"),
        (["--texts", "stories.jsonl", "-o", "adapter"], "holds another artifact: adapter"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    capsys: Any, stories: Path, workspace: Workspace, arguments: list[str], expected: str
) -> None:
    Path("blank.txt").write_text("\n\n  \n")
    Path("bare").mkdir()
    (Path("bare") / "config.json").write_bytes((BASE / "config.json").read_bytes())
    write_jsonl(Path("adapter/untax.json"), [{"what": "adapter", "outputs": {}}])
    before = workspace.files()
    given = ["--base", BASE, "--rows", 5, *arguments]
    out = Path(arguments[-1]) if "-o" in arguments else OUT
    assert expected in replay(capsys, *[part for part in given if part not in ("-o", "adapter")], code=2, out=out)
    assert workspace.files() == before
    assert not OUT.exists()


def test_mistakes_are_said_before_anything_slow(stories: Path) -> None:
    program = (
        "import sys; sys.argv = ['untax', 'replay', '--texts', 'stories.jsonl', '--column', 'x', '--base', 'b',"
        " '--rows', '3', '-o', 'out']\n"
        "from untax.cli.main import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'transformers', 'axolotl', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert "no column 'x'" in done.stderr
