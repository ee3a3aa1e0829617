"""Training by several processes: the same results as by one, beyond the rounding of sums."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.distributed import SINGLE, Ranks
from pipeline.core.errors import ConfigError
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Division, Loader
from pipeline.modalities.images.preprocessing import Preprocessing
from tests.patience import finish
from tests.pipeline.training import rank_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def by_two(tiny_folder, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes has after every variant."""
    folder = tmp_path_factory.mktemp("ranks") / "prepared"
    shutil.copytree(tiny_folder, folder)
    rank_run.dump(folder)  # before both want it
    command = [sys.executable, "-m", "tests.pipeline.training.rank_run"]
    ranks = [subprocess.Popen([*command, str(k), "2", str(folder)], cwd=ROOT) for k in range(2)]
    for rank in ranks:
        finish(rank)
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [torch.load(folder / f"rank-{k}.pt", weights_only=True) for k in range(2)]


@pytest.mark.parametrize("name", rank_run.VARIANTS)
def test_two_processes_train_what_one_trains(by_two, tiny_folder, tmp_path, name):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_folder, folder)
    alone, together = rank_run.result(folder, SINGLE, name), by_two[0][name]
    np.testing.assert_allclose(together["figures"], alone["figures"], rtol=1e-3)
    for key, tensor in alone["last"].items():
        torch.testing.assert_close(together["last"][key], tensor, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", rank_run.VARIANTS)
def test_every_process_has_the_same_weights(by_two, name):
    first, second = (rank[name] for rank in by_two)
    assert first["figures"] == second["figures"]
    assert all(torch.equal(first["last"][key], second["last"][key]) for key in first["last"])


def test_no_process_steps_where_another_one_skips(by_two):
    for rank in by_two:
        assert rank["half"]["counted"] == [False, True]
        torch.testing.assert_close(rank["half"]["weight"], torch.full((2,), 0.9))


def test_other_steps_give_other_weights(by_two, tiny_folder, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_folder, folder)
    # The comparison can fail: other batches give other weights.
    other = rank_run.result(folder, SINGLE, "plain", settings={"batch_size": 12})
    key = "0.weight"
    assert not torch.allclose(by_two[0]["plain"]["last"][key], other["last"][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("items", "unit", "count"), [(10, 1, 3), (16, 4, 3), (18, 4, 2), (3, 1, 3)])
def test_shares_are_whole_and_cover_everything(items, unit, count):
    shares = [Ranks(index, count).share(items, unit) for index in range(count)]
    covered = [item for share in shares for item in range(items)[share]]
    assert covered == list(range(items))
    assert all(share.start % unit == 0 for share in shares)
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= unit


def test_parts_of_a_step_do_not_depend_on_the_processes(tiny_data):
    feed = Feed(
        tiny_data.train, rank_run.PLAIN, Preprocessing(size=8, mean=(0.5,), std=(0.5,)),
        device=torch.device("cpu"),
    )  # fmt: skip
    whole = list(Loader(feed, None, batch_size=12, seed=1, division=Division(parts=2)).epoch(0))
    assert [len(batch.rows) for batch in whole] == [6] * len(whole)
    for index in range(3):
        own = Loader(
            feed, None, batch_size=12, seed=1, division=Division(parts=2, ranks=Ranks(index, 3))
        ).epoch(0)
        for batch, part in zip(whole, own, strict=True):
            assert np.array_equal(batch.rows, part.rows)
            assert torch.equal(batch.labels, part.labels)
            assert torch.equal(batch.images[part.own], part.images)


def test_a_step_with_too_few_images_is_refused(tiny_data):
    feed = Feed(
        tiny_data.train, rank_run.MIXED, Preprocessing(size=8, mean=(0.5,), std=(0.5,)),
        device=torch.device("cpu"),
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"batch_size 16 is too small for 2 parts on 4 processes; expected at least 32"
    ):
        Loader(
            feed, None, batch_size=16, seed=1, n_classes=3, division=Division(parts=2, ranks=Ranks(0, 4))
        )
