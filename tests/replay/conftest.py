"""Axolotl's tokenisation with the bundled model's tokenizer, and real pretraining text where it is at hand."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from toys import BASE
from untax.data.completion import Completion, load_completion

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "replay"


@pytest.fixture(scope="session")
def completion() -> Callable[[int], Completion]:
    """``load_completion`` of the bundled base, for rows of so many tokens."""

    def load(sequence_len: int) -> Completion:
        return load_completion({"base_model": str(BASE)}, sequence_len)

    return load


@pytest.fixture(scope="session")
def real_text() -> Callable[[str], str]:
    """A file of real pretraining text; the test is skipped where there is none."""

    def read(name: str) -> str:
        if not REAL.is_dir():
            pytest.skip("the real pretraining texts (../shared/data/replay) are not here")
        return gzip.decompress((REAL / name).read_bytes()).decode()

    return read
