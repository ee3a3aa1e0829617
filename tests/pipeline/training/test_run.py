"""What a run says of itself."""

from __future__ import annotations

import shutil

import pytest

from pipeline.core.distributed import SINGLE
from pipeline.losses import Schedule, ScheduledLoss, label_smoothing
from tests.pipeline.training import rank_run


@pytest.mark.parametrize(("epochs", "told"), [(3, False), (20, True)])
def test_a_schedule_that_training_does_not_see_the_end_of_is_told(
    tiny_folder, tmp_path, capsys, epochs, told
):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_folder, folder)
    loss = ScheduledLoss(label_smoothing, {"smoothing": Schedule(0.1, 0.0, epochs)})
    rank_run.result(folder, SINGLE, "plain", loss=loss)
    text = "the loss's schedules last 20 epochs, but training ends after 3"
    assert (text in capsys.readouterr().err) == told
