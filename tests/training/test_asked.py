"""Keys that decide no weight, and when they do."""

from __future__ import annotations

from typing import Any

import pytest

from untax.training.asked import BY_CHECKPOINTS, BY_LOGS, REPORTING, SAVING, Asked, differences


@pytest.mark.parametrize("key", ["eval_steps", "save_only_model", "resume_from_checkpoint"])
def test_what_looks_like_saving_and_can_decide_a_weight_is_a_difference(key: str):
    assert differences(Asked({"learning_rate": 0.1}), Asked({"learning_rate": 0.1, key: 3})) == [key]


@pytest.mark.parametrize(
    "chosen",
    [
        *({"load_best_model_at_end": value} for value in (True, None)),  # Axolotl's default is False; null is not.
        *({"early_stopping_patience": 2}, {"relora": True}),
    ],
)
def test_saving_counts_where_weights_are_chosen_by_checkpoints(chosen: dict[str, Any]):
    keys = {"learning_rate": 0.1, "save_steps": 5}
    for one, other in (({}, chosen), (chosen, {}), (chosen, chosen)):
        changed = differences(Asked({**keys, **one}), Asked({**keys, **other, "save_steps": 6, "logging_steps": 1}))
        assert changed == ["save_steps", *(chosen if one != other else {})]
    dense = {**keys, "load_best_model_at_end": False}
    assert differences(Asked(dense), Asked({**dense, "save_steps": 6})) == []


def test_logging_counts_where_a_training_ends_by_its_logs():
    keys = {"loss_watchdog_threshold": 5.0, "logging_steps": 1}
    assert differences(Asked(keys), Asked({**keys, "logging_steps": 2, "save_steps": 3})) == ["logging_steps"]


def test_axolotl_knows_every_key_that_is_left_out():
    """A key that it does not know would be a slip of ours, and one of a reporter that is new would not be left out."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    known = set(AxolotlInputConfig.model_fields)
    assert {*SAVING, *REPORTING, *BY_CHECKPOINTS, BY_LOGS} <= known
    reporters = ("wandb_", "mlflow_", "comet_", "trackio_", "otel_")
    assert {key for key in known if key.startswith(reporters)} <= set(REPORTING)
