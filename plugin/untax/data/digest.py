"""The identity of a row and of a corpus, from content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

ROW_DIGEST_BYTES = 16


def canonical_json(row: Mapping[str, Any]) -> bytes:
    """A row as bytes that depend on its content only: sorted keys, no spaces, no null values.

    Nulls are left out because `datasets` fills a column with them as soon as one other row has it: adding rows with a
    new column must not change the identity of the old ones.
    """
    return json.dumps(
        _without_nulls(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    ).encode("utf-8", "surrogatepass")


def row_digest(row: Mapping[str, Any]) -> bytes:
    """BLAKE2b of the canonical row, 16 bytes."""
    return hashlib.blake2b(canonical_json(row), digest_size=ROW_DIGEST_BYTES).digest()


def corpus_digest(digests: Iterable[bytes]) -> str:
    """One digest for all rows in their order, 32 hexadecimal digits."""
    corpus = hashlib.blake2b(digest_size=16)
    for digest in digests:
        corpus.update(digest)
    return corpus.hexdigest()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """Values that JSON does not know but Parquet does."""
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if hasattr(value, "isoformat"):
        return {"time": value.isoformat()}
    return {"repr": repr(value)}
