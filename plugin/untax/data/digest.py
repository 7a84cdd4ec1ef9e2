"""The identity of a row and of a corpus, from content alone."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

ROW_DIGEST_BYTES = 16


def canonical_json(row: Mapping[str, Any]) -> bytes:
    """A row as bytes that depend on its content only.

    What `datasets` changes in old rows when rows are added must not change their identity: a new column gives them
    nulls, which are left out, and one fraction turns a column of whole numbers into fractions, so 1.0 counts as 1.

    Raises:
        TypeError: a value is neither text, number, time nor bytes, nor made of those.
    """
    return json.dumps(_canonical(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def row_digest(row: Mapping[str, Any]) -> bytes:
    """BLAKE2b of the canonical row, 16 bytes."""
    return hashlib.blake2b(canonical_json(row), digest_size=ROW_DIGEST_BYTES).digest()


def corpus_digest(digests: Iterable[bytes]) -> str:
    """One digest for all rows in their order, 32 hexadecimal digits."""
    corpus = hashlib.blake2b(digest_size=16)
    for digest in digests:
        corpus.update(digest)
    return corpus.hexdigest()


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        items = ((str(key), _canonical(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None and item != {}}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if hasattr(value, "isoformat"):
        return {"time": value.isoformat()}
    if isinstance(value, (datetime.timedelta, decimal.Decimal)):
        return {type(value).__name__: str(value)}
    raise TypeError(f"a value of type {type(value).__name__} has no canonical form")
