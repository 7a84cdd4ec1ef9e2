"""All that can be known before a run starts is said before it starts, and all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from untax.demo.demo import demo_spec, prepare
from untax.errors import UntaxError
from untax.recipes.plan import plan
from untax.run.preflight import check_files, edited
from untax.run.todo import todo


def change(path: Path, **keys: object) -> None:
    content = {**yaml.safe_load(path.read_text()), **keys}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def test_a_fresh_demo_can_start_and_has_everything_to_do(tmp_path: Path):
    prepare(tmp_path / "run")
    expanded = plan(demo_spec())
    check_files(expanded, tmp_path / "run", "demo")
    assert edited(expanded, tmp_path / "run") == []
    due = {due.node.name: due.reason for due in todo(expanded, tmp_path / "run", "demo")}
    assert set(due) == {node.name for node in expanded.nodes}
    assert due["sft"] == "outputs/sft: not made yet"
    assert due["dpo-sequential"] == "outputs/dpo-sequential: not made yet"


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path):
    run = tmp_path / "run"
    prepare(run)
    change(run / "recipes/sft.yaml", plugins=None)
    change(run / "recipes/cluster-0.yaml", disperse_strategy="randm")
    change(run / "recipes/cluster-1.yaml", output_dir="elsewhere")
    change(run / "recipes/sft-sparse.yaml", delta_l1=-1.0, lora_alpha=None)
    change(run / "recipes/dpo.yaml", datasets=[{"path": "data/missing.jsonl"}])
    change(run / "recipes/cluster-2.yaml", plugins=["untax.ManifestPlugin"])
    (run / "data/sft.jsonl").write_text("")
    with pytest.raises(UntaxError) as caught:
        check_files(plan(demo_spec()), run, "demoo")
    message = str(caught.value)
    for part in (
        "recipes/sft.yaml: plugins lists none of untax's",
        "unknown 'randm'. Did you mean 'random'?",
        "recipes/cluster-1.yaml: output_dir is elsewhere",
        "lambda is a finite number >= 0",
        "recipes/dpo.yaml: datasets: there is no data/missing.jsonl",
        "recipes/cluster-2.yaml: The key",
        "recipes/sft.yaml: datasets: data/sft.jsonl is empty",
        "recipes/sft-sparse.yaml: lora_alpha: it is missing, and Axolotl has no default for it",
        "demoo",
    ):
        assert part in message
    assert len(edited(plan(demo_spec()), run)) == 6


def test_a_yaml_edited_to_read_what_another_node_makes_waits_for_it(tmp_path: Path):
    run = tmp_path / "run"
    prepare(run)
    change(run / "recipes/dpo.yaml", base_model="./outputs/vanilla")
    expanded = plan(demo_spec())
    check_files(expanded, run, "demo")
    due = {one.node.name: one for one in todo(expanded, run, "demo")}
    assert due["dpo"].node.needs == ("vanilla",)
    assert list(due).index("vanilla") < list(due).index("dpo")


def test_a_yaml_edited_to_read_what_comes_of_it_is_refused(tmp_path: Path):
    run = tmp_path / "run"
    prepare(run)
    change(run / "recipes/sft.yaml", base_model="outputs/vanilla")
    with pytest.raises(UntaxError, match="Nodes wait for each other") as caught:
        check_files(plan(demo_spec()), run, "demo")
    assert "sft needs vanilla: recipes/sft.yaml reads outputs/vanilla" in str(caught.value)
    assert "vanilla needs sft" in str(caught.value)


def test_what_no_node_makes_is_missing(tmp_path: Path):
    run = tmp_path / "run"
    prepare(run)
    change(run / "recipes/dpo.yaml", base_model="outputs/vanila")
    change(run / "recipes/sft-sparse.yaml", delta_ewc=0.1, delta_ewc_fisher="f.safetensors")
    with pytest.raises(UntaxError) as caught:
        check_files(plan(demo_spec()), run, "demo")
    assert "recipes/dpo.yaml: base_model: there is no outputs/vanila" in str(caught.value)
    assert "recipes/sft-sparse.yaml: delta_ewc_fisher: there is no f.safetensors" in str(caught.value)


def test_a_missing_yaml_names_the_command_that_writes_it(tmp_path: Path):
    prepare(tmp_path / "run")
    (tmp_path / "run/recipes/dpo.yaml").unlink()
    with pytest.raises(UntaxError, match=r"untax recipe --from"):
        check_files(plan(demo_spec()), tmp_path / "run", "demo")


def test_the_demo_refuses_a_folder_with_something_else(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("x")
    with pytest.raises(UntaxError, match="something else"):
        prepare(tmp_path / "photos")
    prepare(tmp_path / "run")
    change(tmp_path / "run/untax.yaml", seed=1)
    with pytest.raises(UntaxError, match="another run"):
        prepare(tmp_path / "run")
