"""Each corpus' entry reads rows of its columns as meant: by Axolotl itself, with the bundled base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from untax.data.first_turn import first_turn
from untax.data.row_types import instruction_and_response
from untax.recipes.presets import CATALOGUE, corpora
from untax.recipes.presets.corpora import Corpus

ASKED, SAID, WORSE = "What is a hill?", "A high place.", "A low place."
TURN = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
DIALOGUE = [*TURN, {"role": "user", "content": "And a dale?"}, {"role": "assistant", "content": "It is between hills."}]
WORSE_TURN = [TURN[0], {"role": "assistant", "content": WORSE}]
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    f"### Instruction:\n{ASKED}\n\n### Response:\n"
)
# A row of each corpus, with the columns of its card.
DTM_ROWS: dict[str, dict[str, Any]] = {
    "Tulu-V2-mix": {"dataset": "lima", "id": "lima_0", "messages": DIALOGUE},
    "Alpaca-GPT4": {"instruction": ASKED, "input": "", "output": SAID, "text": "all of it"},
    "Code-Alpaca": {"instruction": ASKED, "input": "", "output": SAID},
    "Baize": {"instruction": ASKED, "input": "", "output": SAID},
    "Camel": {"role_1": "Physicist", "topic;": "T", "sub_topic": "S", "message_1": ASKED, "message_2": SAID},
    "Evol-Instruct-70k": {"instruction": ASKED, "output": SAID},
    "LIMA": {"category": "stackexchange", "conversation": DIALOGUE},
}
CHATS = ("UltraChat", "smol-smoltalk", "smoltalk", "Tulu 3 SFT mixture", "Tulu 3 SFT mixture for OLMo 2 (0225)")
PAIRS = ("UltraFeedback", "UltraFeedback, cleaned", "Tulu 3 8B preference mixture", "OLMo 2 1B preference mixture")
CORPORA = {one.name: one for one in vars(corpora).values() if isinstance(one, Corpus)}


REPOSITORY = Path(__file__).parents[3]
BASE = REPOSITORY / "plugin/untax/demo/base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def validated(axolotl_validated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that Axolotl makes of the first checked-in YAML that reads a corpus."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/baize.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)

    def of(corpus: Corpus) -> Any:
        preset = next(one for one in CATALOGUE.values() if corpus in one.corpora)
        name = "sft" if corpus is preset.sft else "dpo"
        return axolotl_validated(REPOSITORY / f"recipes/{preset.name}/{name}.yaml")

    return of


def trained(cfg: Any, row: dict[str, Any]) -> tuple[str, str]:
    """All of the text and the part that carries loss, for each entry the same."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from datasets import Dataset

    # The format is the recipe's, the vocabulary the bundled one, which need not have the base's padding token.
    cfg.base_model = cfg.base_model_config = cfg.tokenizer_config = str(BASE)
    cfg.special_tokens = None
    tokenizer = load_tokenizer(cfg)
    found = set()
    for entry in cfg.datasets:
        base_type = entry["type"] if isinstance(entry["type"], str) else None
        wrapped, _ = get_dataset_wrapper(entry, tokenizer, cfg, base_type, Dataset.from_list([row]))
        tokens = wrapped[0]
        said = [token for token in tokens["labels"] if token != -100]
        found.add((tokenizer.decode(tokens["input_ids"]), tokenizer.decode(said)))
    (pair,) = found
    return pair


def test_every_corpus_of_a_preset_is_tested_here():
    used = {corpus.name for preset in CATALOGUE.values() for corpus in preset.corpora}
    assert used == {*DTM_ROWS, *CHATS, *PAIRS} == set(CORPORA)


@pytest.mark.parametrize("name", DTM_ROWS)
def test_rows_are_trained_in_the_papers_prompt(name: str, validated: Any):
    """DTM A.3: Alpaca's prompt, and loss on the output only."""
    corpus, row = CORPORA[name], DTM_ROWS[name]
    if corpus.first_turn:
        turn = first_turn(row)
        assert turn is not None
        row = dict(turn)
    text, loss = trained(validated(corpus), row)
    # Axolotl tokenises prompt and output apart, and tokenizers like Llama's begin each with a space.
    assert text.replace("\n ", "\n") == f"<s> {ALPACA}{SAID}</s>"
    assert loss == f"{SAID}</s>"


@pytest.mark.parametrize("name", DTM_ROWS)
def test_rows_are_embedded_by_their_instruction_and_response(name: str):
    corpus = CORPORA[name]
    for entry in corpus.entries:
        read = instruction_and_response(DTM_ROWS[name], entry, first_turn=corpus.first_turn)
        assert read == (ASKED, SAID)


@pytest.mark.parametrize("name", CHATS)
def test_dialogues_are_trained_in_zephyrs_format(name: str, validated: Any):
    text, loss = trained(validated(CORPORA[name]), {"messages": DIALOGUE, "source": "x"})
    for message in DIALOGUE:
        assert f"<|{message['role']}|>\n{message['content']}</s>" in text.replace("</s> ", "</s>")
    said = [message["content"] for message in DIALOGUE if message["role"] == "assistant"]
    assert loss.replace("</s>", "\n").split("\n") == [*said, ""]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_read_for_dpo(name: str, tokenizer: Any, validated: Any):
    from axolotl.prompt_strategies.dpo import load

    assert_pair_is_read(load, validated(CORPORA[name]), tokenizer)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name.endswith("-orpo")])
def test_pairs_are_read_for_orpo(name: str, tokenizer: Any, axolotl_validated: Any):
    from axolotl.prompt_strategies.orpo import load

    assert_pair_is_read(load, axolotl_validated(REPOSITORY / f"recipes/{name}/orpo.yaml"), tokenizer)


def assert_pair_is_read(load: Any, cfg: Any, tokenizer: Any) -> None:
    """As Axolotl's loader for preference data reads it: a prompt and two answers, each with the end of the sequence."""
    from axolotl.utils.data.rl import _map_dataset
    from datasets import Dataset

    (entry,) = cfg.datasets
    transform, how = load(entry["type"], cfg, dataset_idx=0)
    rows = Dataset.from_list([{"prompt": ASKED, "chosen": TURN, "rejected": WORSE_TURN, "source": "x"}])
    if how.get("remove_columns") == "__all__":
        how["remove_columns"] = rows.column_names
    cfg.dataset_num_proc = 1
    (read,) = _map_dataset(cfg, rows, transform, tokenizer, **how)
    assert read["prompt"] == f"<|user|>\n{ASKED}</s>\n<|assistant|>\n"
    assert (read["chosen"], read["rejected"]) == (f"{SAID}</s>", f"{WORSE}</s>")


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=lambda corpus: corpus.name)
def test_sizes_are_plausible(corpus: Corpus):
    assert 1_000 <= corpus.rows <= 1_100_000
    assert 20 <= corpus.tokens <= 2_000


def test_tokens_of_tulu_are_those_of_table_8():
    """By hand: 1.33 tokens a word and 36 of the prompt, at most 1,024; two of the eleven subsets as a check."""
    assert (
        corpora.TULU2.rows
        == 49_123 + 49_747 + 7_331 + 111_912 + 19_906 + 20_016 + 1_018 + 29_810 + 29_683 + 7_468 + 140
    )
    assert corpora.CODE_ALPACA.tokens == pytest.approx(1.33 * (20.81 + 44.94) + 36)
    assert 0.9 * 392 < corpora.TULU2.tokens < 1.1 * 392
