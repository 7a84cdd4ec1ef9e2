"""A recording of the trainer, and the base in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from toys import BASE

from . import float64
from .recording import Recording, recorded


@pytest.fixture
def recording() -> Iterator[Recording]:
    """Weights and batches, and gradients before and after clipping, of every optimizer step."""
    with recorded() as record:
        yield record


@pytest.fixture(scope="package")
def base64() -> Any:
    """The bundled base model in float64."""
    return float64.load(BASE)
