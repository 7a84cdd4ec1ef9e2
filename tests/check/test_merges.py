"""mergekit YAMLs edited by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.check.check import check_folder

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda keys: keys.update(merge_method="tise"), "no merge method 'tise'. Did you mean 'ties'"),
        (lambda keys: keys["models"][0]["parameters"].update(densty=0.5), "densty"),
        (lambda keys: keys["models"][0]["parameters"].update(density=1.5), "1.5"),
        (lambda keys: keys.pop("models"), "models"),
    ],
)
def test_a_merge_that_would_fail_after_the_trainings(
    run_folder: Make, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    folder = run_folder()
    path = folder / "mergekit_configs/paft-ties.yaml"
    keys = yaml.safe_load(path.read_text())
    change(keys)
    path.write_text(yaml.safe_dump(keys))
    found = [finding for finding in check_folder(folder, offline=True).findings if finding.state == "fail"]
    assert [finding.where for finding in found] == ["mergekit_configs/paft-ties.yaml"]
    assert said in found[0].text


def test_merges_as_they_were_generated_are_not_read(run_folder: Make) -> None:
    report = check_folder(run_folder(), offline=True)
    assert not [finding for finding in report.findings if "mergekit_configs" in finding.where]
