"""Token sequences against Axolotl's own tokenisation, and batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.data.text_files import Text
from untax.errors import UntaxError
from untax.evaluate.suites.demo import documents
from untax.fisher.sequences import TokenSequence, batches, check_vocabulary, tokenise


@pytest.fixture
def tokenizer(base_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model)


def test_a_text_follows_the_beginning_of_sequence(tokenizer: Any) -> None:
    (sequence,) = tokenise([Text(7, "Once upon a time")], tokenizer, length=100).sequences
    assert sequence.position == 7
    assert sequence.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(sequence.ids[1:]) == "Once upon a time"
    assert (sequence.start, sequence.scored) == (1, len(sequence.ids) - 1)


@pytest.mark.parametrize("given_input", ["", "A red ball."])
def test_a_response_is_tokenised_as_in_training(tokenizer: Any, given_input: str) -> None:
    from axolotl.prompt_strategies.alpaca_chat import AlpacaPrompter
    from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy

    row = {"instruction": "Tell a story.", "input": given_input, "output": "There was a ball."}
    trained = AlpacaPromptTokenizingStrategy(AlpacaPrompter("instruct"), tokenizer, False, 2048).tokenize_prompt(row)
    text = Text(0, row["output"], documents.prompt(row) + documents.NEWLINE)
    (sequence,) = tokenise([text], tokenizer, length=2048).sequences
    assert trained["input_ids"][-1] == tokenizer.eos_token_id
    assert list(sequence.ids) == trained["input_ids"][:-1]
    assert list(sequence.ids[sequence.start :]) == [label for label in trained["labels"][:-1] if label != -100]


def test_an_end_of_sequence_does_not_part_a_prompt_from_its_response(tokenizer: Any) -> None:
    """Some tokenizers put one after every text."""
    from tokenizers.processors import TemplateProcessing

    text = Text(0, "There was a ball.", "Tell a story.\n")
    (expected,) = tokenise([text], tokenizer, length=100).sequences
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    assert tokenizer(text.prompt).input_ids[-1] == tokenizer.eos_token_id
    assert tokenise([text], tokenizer, length=100).sequences == (expected,)


def test_long_texts_are_cut_and_those_without_a_token_to_score_left_out(tokenizer: Any) -> None:
    long, short = "Once upon a time there was a ball", "Hi"
    texts = [Text(0, long), Text(1, short), Text(2, short, long), Text(3, "", short)]
    found = tokenise(texts, tokenizer, length=5)
    assert [(one.position, len(one.ids)) for one in found.sequences] == [(0, 5), (1, len(tokenizer(short).input_ids))]
    assert (found.cut, found.left_out) == (1, 2)
    whole = tokenise(texts[:1], tokenizer, length=500).sequences[0]
    assert found.sequences[0].ids == whole.ids[:5]


def test_a_token_without_an_embedding_is_refused() -> None:
    sequences = [TokenSequence(0, (1, 511), 1)]
    check_vocabulary(sequences, 512, where="model")
    with pytest.raises(UntaxError, match="gives the token 511, but the model has only 511"):
        check_vocabulary(sequences, 511, where="model")


@settings(derandomize=True)
@given(st.lists(st.integers(2, 40), max_size=30), st.integers(1, 90))
def test_batches_hold_every_sequence_once_within_their_budget(lengths: list[int], budget: int) -> None:
    sequences = [TokenSequence(position, (0,) * length, 1) for position, length in enumerate(lengths)]
    found = list(batches(sequences, budget))
    assert sorted(one.position for batch in found for one in batch) == list(range(len(lengths)))
    for batch in found:
        width = max(len(one.ids) for one in batch)
        assert len(batch) == 1 or len(batch) * width <= budget
