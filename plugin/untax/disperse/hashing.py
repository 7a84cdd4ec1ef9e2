"""Random dispersal without state: the cluster of a row is a keyed hash of its content.

No shuffle and no counter, so any number of workers agree, and rows added later move none of the old ones.
Disperse-Then-Merge, section 5.2, disperses at random into K = 4 clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from untax.data.corpus import Corpus


def random_clusters(corpus: Corpus, *, clusters: int, seed: int) -> np.ndarray:
    """The strategy ``random``: cluster(row) = hash(seed, row content) mod K, shape (N,), int32."""
    return hash_clusters(corpus.digests, clusters=clusters, seed=seed)


def hash_clusters(digests: Iterable[bytes], *, clusters: int, seed: int) -> np.ndarray:
    """Clusters in [0, K) for row digests, shape (N,), int32.

    The 64-bit keyed hash makes the bias of the modulus at most K / 2**64.
    """
    key = str(seed).encode()
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest(), "little") % clusters
            for digest in digests
        ),
        dtype=np.int32,
    )
