"""What is left of what died or ran full: parts of outputs, causes in logs, outputs that cannot be written."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from untax.files import new_folder
from untax.run.judge import why
from untax.run.output import PatientOutput
from untax.run.room import make_room
from untax.run.workers import Ended, Usage


def leave_a_part(output: Path) -> Path:
    """As a merge does that is killed: what it was about to make stays beside the place."""
    import shutil

    with new_folder(output) as part:
        (part / "model.safetensors").write_text("half a model")
        left = shutil.copytree(part, part.with_name("kept"))
    shutil.rmtree(output)
    return left.rename(part)


def test_what_a_killed_merge_was_about_to_make_is_removed(tmp_path, make_node):
    ours, others = (leave_a_part(tmp_path / "outputs" / name) for name in ("average-2", "average-2.5"))
    make_room(make_node("average-2"), tmp_path)
    assert not ours.exists()
    assert (others / "model.safetensors").exists(), "another node may be making it now"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("untax: error: The merge needs about 13.5 GB of disk, and 2.0 GB are free.", "the disk is full"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ImportError: libx.so: failed to map segment from shared object", "main memory was not enough"),
        ("Signal 9 (SIGKILL) received by PID 4321", "one of its processes was killed"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", "one of its processes was killed"),
        ("_pickle.UnpicklingError: Weights only load failed. This file can ...", "remove its newest checkpoint"),
        ("untax: error: first\nuntax: error: There is no model folder base.", "(There is no model folder base.)"),
    ],
)
def test_a_cause_in_a_log_is_said(line: str, cause: str, tmp_path: Path):
    log = tmp_path / "a.log"
    log.write_text(f"$ command\n{line}\n")
    assert cause in why(Ended(1, Usage(1.0)), log)
    log.write_text("$ command\nKeyError: 'x'\n")
    assert why(Ended(1, Usage(1.0)), log) == "ended with exit code 1"


def test_a_pipe_that_is_closed_is_written_to_no_more():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        output = PatientOutput(stream)
        for _ in range(2):
            assert output.write("text\n") == 5
            output.flush()
        assert os.path.samestat(os.fstat(write), os.stat(os.devnull))


class Disk(io.RawIOBase):
    """A file on a disk that is full at first."""

    full, content = True, b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.content += bytes(data)
        return len(data)


def test_what_a_full_disk_refused_is_written_once_there_is_space():
    disk = Disk()
    output = PatientOutput(io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8"))
    output.write("first\n")
    output.flush()
    assert disk.content == b""
    disk.full = False
    output.write("second\n")
    output.flush()
    assert disk.content == b"first\nsecond\n"
