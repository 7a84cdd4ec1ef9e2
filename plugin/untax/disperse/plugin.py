"""DispersePlugin: Axolotl trains on one cluster of the corpus instead of all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from untax.data.corpus import Corpus, read_corpus
from untax.data.streamed import is_streamed
from untax.disperse.assignment import Assignment, assignment_path, cache_folder, obtain
from untax.disperse.rows import cluster_sources, used
from untax.disperse.settings import DisperseSettings, read_settings
from untax.disperse.streaming import load_cluster
from untax.training.plain import plain_errors
from untax.training.plugin import UntaxPlugin

LOG = get_logger("axolotl.untax.disperse")


class DispersePlugin(UntaxPlugin):
    """Keys ``disperse_*``: see ``untax.disperse.settings``.

    In ``load_datasets`` the entries of ``datasets:`` are replaced by Parquet files that hold the rows of the asked-for
    cluster. Axolotl then tokenises, packs, splits and caches as ever, for SFT and preference data alike.
    """

    def get_input_args(self) -> str:
        """The keys this plugin adds to Axolotl's configuration."""
        return "untax.disperse.args.DisperseArgs"

    def check(self, cfg: dict[str, Any]) -> None:
        """Refuse wrong keys before Axolotl drops or rewords them."""
        read_settings(cfg, where=self.config_path(cfg))

    @plain_errors
    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> Any:
        """Rewrite ``cfg.datasets`` to the asked-for cluster; Axolotl loads what it names. Streams are loaded here."""
        self.check_loaded(cfg)
        settings = read_settings(cfg, where=self.config_path(cfg))
        if not settings.active:
            self.separate_prepared_data(cfg)
            return None
        if is_streamed(cfg):
            return self._stream(cfg, settings)
        # Axolotl's validation may have reworded the entries; the assignment names them as they were written.
        corpus = dataclasses.replace(read_corpus(cfg), entries=self.record().entries)
        assignment = obtain(corpus, settings, assignment_path(cfg, settings, corpus), cache_folder(cfg))
        cluster = settings.cluster or 0
        cfg.datasets = rewritten(corpus, assignment.files(cluster))
        if settings.first_turn and cfg.test_datasets:
            cfg.test_datasets = _first_turn_tests(cfg)
        self.separate_prepared_data(cfg)
        self._report(cfg, settings, assignment, cluster)
        return None

    @plain_errors
    def pre_model_load(self, cfg: DictDefault) -> None:
        """Count the rows that Axolotl was told to read, once it has: another plugin may have had a say since."""
        section = self.record().sections.get("disperse")
        if isinstance(section, dict) and "files" in section:
            section["rows_read"] = _rows(cfg.datasets or [], section["files"])
        super().pre_model_load(cfg)

    def _stream(self, cfg: DictDefault, settings: DisperseSettings) -> Any:
        """Axolotl's data with the cluster picked out of its streams; held-out rows are those they are otherwise."""
        if settings.first_turn and cfg.test_datasets:
            cfg.test_datasets = _first_turn_tests(cfg)
        self.separate_prepared_data(cfg)
        meta, rows = load_cluster(cfg, settings)
        entries = self.record().entries
        self.record().sections["disperse"] = lambda: {"entries": entries, **rows.section()}
        which = f"cluster {settings.cluster} of {settings.clusters}" if settings.clusters else "all clusters"
        LOG.info(f"untax: training on the rows of {which} as they are streamed")
        return meta

    def _report(self, cfg: DictDefault, settings: DisperseSettings, assignment: Assignment, cluster: int) -> None:
        section = assignment.section
        rows, left_out = section["sizes"][cluster], section["rows_without_first_turn"]
        names = [str(path.relative_to(assignment.path.parent)) for path in assignment.files(cluster).values()]
        self.record().sections["disperse"] = {
            "cluster": settings.cluster,
            "rows": rows,
            "assignment": assignment.digest,
            **settings.identity,
            **{key: section[key] for key in ("corpus", "sizes")},
            "rows_without_first_turn": left_out,
            "files": {Path(name).name: assignment.manifest["outputs"][name] for name in names},
            "trained_on": cluster_sources(section, self.record().keys.get("datasets") or [], cluster),
        }
        if left_out:
            LOG.warning(f"untax: {left_out} of {section['rows']} rows have no complete first turn and are left out")
        which = f"cluster {cluster} of {settings.clusters}" if settings.clusters else "all clusters"
        LOG.info(f"untax: training on {rows} rows ({which}, sizes {section['sizes']}, {assignment.path})")


def _rows(entries: list[Any], known: dict[str, str]) -> int | None:
    """The rows of the cluster's files that entries name; None if they name something else."""
    import pyarrow.parquet as pq

    paths = [Path(str(entry["path"])) for entry in entries]
    return sum(pq.read_metadata(path).num_rows for path in paths) if all(path.name in known for path in paths) else None


def rewritten(corpus: Corpus, files: dict[int, Path]) -> list[DictDefault]:
    """``datasets:`` with every source replaced by its file; sources without one are left out."""
    return [DictDefault({**used(corpus.sources[index].entry), "path": str(path)}) for index, path in files.items()]


def _first_turn_tests(cfg: DictDefault) -> list[DictDefault]:
    """Held-out rows take the form of the training rows, and are not dispersed."""
    tests = read_corpus(cfg, key="test_datasets")
    cut = DisperseSettings(first_turn=True)
    return rewritten(tests, obtain(tests, cut, assignment_path(cfg, cut, tests), cache_folder(cfg)).files(0))
