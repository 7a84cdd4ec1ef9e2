"""What a cluster holds, so that a training on the same rows is known whatever became of the other clusters.

Rows count by their own digests and not by their file's, which depends on the version of the library that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from untax.data.corpus import ROW_KEYS
from untax.data.digest import RowDigests, corpus_digest

if TYPE_CHECKING:
    from untax.data.corpus import Corpus
    from untax.disperse.clusters import ClusterFile


def contents(corpus: Corpus, files: Sequence[ClusterFile]) -> list[dict[str, str]]:
    """For each cluster: source -> the digest of its rows that are in the cluster, in their order."""
    starts, start = [], 0
    for source in corpus.sources:
        starts.append(start)
        start += len(source.rows)
    found: list[dict[str, str]] = [{} for _ in range(max(file.cluster for file in files) + 1)]
    for file in files:
        rows = RowDigests(corpus.digests.array[file.rows.astype("int64") + starts[file.index]])
        found[file.cluster][str(file.index)] = corpus_digest(rows)
    return found


def cluster_sources(
    section: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], cluster: int
) -> list[dict[str, Any]] | None:
    """What a training on a cluster reads: for each source, in order, how its rows are used, and which they are.

    Args:
        section: ``disperse`` of the assignment's manifest.
        entries: ``datasets:`` as the training's YAML has it.
        cluster: which cluster.

    Returns:
        ``{"entry", "rows", "digest"}`` for each source with rows in the cluster; None if the assignment, made by an
        older version, does not tell, or if it is not one of these entries.
    """
    held, counts = section.get("contents"), section.get("sources")
    positions = source_positions(entries)
    if not isinstance(held, list) or not isinstance(counts, Mapping) or len(counts) != len(positions):
        return None
    if not 0 <= cluster < len(held) or not isinstance(held[cluster], Mapping):
        return None
    sizes = list(counts.values())
    found = []
    for source, digest in sorted(held[cluster].items(), key=lambda item: int(item[0])):
        entry = entries[positions[int(source)]]
        found.append({"entry": used(entry), "rows": sizes[int(source)][cluster], "digest": digest})
    return found


def source_positions(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each source the position of its entry: Axolotl reads several names or shards of one as several datasets."""
    found = []
    for position, entry in enumerate(entries):
        names, shards = entry.get("name"), entry.get("preprocess_shards")
        several = len(names) if names and isinstance(names, list) else 0 if entry.get("shards") else shards
        found += [position] * (several if isinstance(several, int) and several > 0 else 1)
    return found


def used(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what says which rows to read: how they are used."""
    return {key: value for key, value in entry.items() if key not in ROW_KEYS and key != "path" and value is not None}
