"""Checkpoints that a killed training left half-written: Axolotl would resume from the last one, whole or not."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zipfile
from pathlib import Path

STATE_NAME = "trainer_state.json"
"""What the trainer writes last into a checkpoint."""
HEADER_MOST = 100_000_000
"""The most bytes that safetensors allows for its header."""
_NAME = re.compile(r"checkpoint-(\d+)")
_ARCHIVE = b"PK\x03\x04"


def remove_unfinished(output_dir: Path) -> list[Path]:
    """Remove the checkpoints of an interrupted training that nothing can go on from, and return them."""
    # Others, such as `checkpoint-best`, are no trainer's, which never goes on from them.
    broken = [folder for folder in output_dir.glob("checkpoint-*") if step_of(folder) is not None]
    broken = [folder for folder in broken if folder.is_dir() and unfinished(folder)]
    for folder in broken:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    return broken


def step_of(checkpoint: Path) -> int | None:
    """The optimizer step that a folder is the trainer's checkpoint of, by its name; None for any other folder."""
    found = _NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else None


def unfinished(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, or None: its last file is missing or cut, or another one is.

    Of large files only the beginning and the end are read.
    """
    try:
        state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "global_step" not in state:
            return f"{STATE_NAME} is no trainer state"
    except FileNotFoundError:
        return f"{STATE_NAME} is missing"
    except (OSError, ValueError):
        return f"{STATE_NAME} is cut"
    for file in sorted(checkpoint.iterdir()):
        if file.suffix == ".safetensors" and not _is_whole_safetensors(file):
            return f"{file.name} is cut"
        if file.suffix in (".pt", ".pth", ".bin") and file.is_file() and _is_cut_archive(file):
            return f"{file.name} is cut"
    return None


def _is_cut_archive(file: Path) -> bool:
    """Whether the file begins as what ``torch.save`` writes, or not at all, and does not end as that; of files in any
    other format, its own before version 1.6 included, nothing is known.
    """
    with file.open("rb") as handle:
        begins = handle.read(len(_ARCHIVE))
    begun = _ARCHIVE.startswith(begins) or not any(begins)  # After a power cut a file may be zeros.
    return begun and not zipfile.is_zipfile(file)


def _is_whole_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says."""
    try:
        with file.open("rb") as handle:
            size = struct.unpack("<Q", handle.read(8))[0]
            if size > HEADER_MOST:
                return False
            header = json.loads(handle.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, IndexError):
        return False
    return file.stat().st_size == 8 + size + max(ends, default=0)
