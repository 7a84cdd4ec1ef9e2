"""Random dispersal: cluster(row) = keyed hash of (seed, content) mod K."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.data.digest import row_digest
from untax.disperse.hashing import hash_clusters

DIGESTS = [row_digest({"instruction": f"q{index}", "output": f"a{index}"}) for index in range(1000)]
PROGRAM = """
from untax.data.digest import row_digest
from untax.disperse.hashing import hash_clusters
rows = ({"output": f"a{index}", "instruction": f"q{index}"} for index in range(1000))
print("".join(map(str, hash_clusters([row_digest(row) for row in rows], clusters=4, seed=42))))
"""


def test_golden_values() -> None:
    """These can never change: assignments and clusters that users published depend on them."""
    assert DIGESTS[0].hex() == "55bfa77728b5a90b72bd903dadf7529a"
    assert "".join(map(str, hash_clusters(DIGESTS[:32], clusters=4, seed=42))) == "33100010100301203233311321102333"
    assert "".join(map(str, hash_clusters(DIGESTS[:32], clusters=7, seed=0))) == "03160134244166102356363005666620"


@given(
    rows=st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=50),
    clusters=st.integers(2, 12),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_row_is_in_exactly_one_cluster(rows: list[bytes], clusters: int, seed: int) -> None:
    found = hash_clusters(rows, clusters=clusters, seed=seed)
    assert found.shape == (len(rows),)
    assert ((found >= 0) & (found < clusters)).all()
    cover = np.concatenate([np.flatnonzero(found == cluster) for cluster in range(clusters)])
    assert sorted(cover) == list(range(len(rows)))


@given(order=st.permutations(range(60)), added=st.integers(0, 60))
@settings(max_examples=30)
def test_neither_order_nor_added_rows_move_a_row(order: list[int], added: int) -> None:
    alone = hash_clusters(DIGESTS[:60], clusters=4, seed=7)
    mixed = hash_clusters([*DIGESTS[100 : 100 + added], *(DIGESTS[i] for i in order)], clusters=4, seed=7)
    assert list(mixed[added:]) == [alone[i] for i in order]


def test_clusters_are_even_and_the_seed_decides() -> None:
    sizes = np.bincount(hash_clusters(DIGESTS, clusters=4, seed=42))
    chi_square = ((sizes - 250) ** 2 / 250).sum()
    assert chi_square < 16.3, "p > 0.001 with 3 degrees of freedom"
    same = hash_clusters(DIGESTS, clusters=4, seed=42) == hash_clusters(DIGESTS, clusters=4, seed=43)
    assert 0.2 < same.mean() < 0.3, "two seeds agree on a quarter of the rows, by chance"


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_every_process_agrees(hash_seed: str) -> None:
    program = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(program, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "".join(map(str, hash_clusters(DIGESTS, clusters=4, seed=42)))


def test_the_formula_as_documented() -> None:
    digest = hashlib.blake2b(DIGESTS[5], digest_size=8, key=b"42").digest()
    assert hash_clusters(DIGESTS[5:6], clusters=4, seed=42)[0] == int.from_bytes(digest, "little") % 4
