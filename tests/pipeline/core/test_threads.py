"""Work on threads: results in order, few ahead, errors in their place."""

from __future__ import annotations

import threading

import pytest

from pipeline.core.threads import side_by_side
from tests.patience import HANGING_SECONDS


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_few_are_ahead(workers):
    taken: list[int] = []

    def items():
        for item in range(200):
            taken.append(item)
            yield item

    for done, result in enumerate(side_by_side(lambda item: item * 2, items(), workers)):
        assert result == done * 2
        assert len(taken) - done <= 3 * workers + 1
    assert len(taken) == 200


def test_two_workers_run_at_once():
    both = threading.Barrier(2)
    assert list(side_by_side(lambda item: both.wait(HANGING_SECONDS) >= 0, range(4), 2)) == [True] * 4


def test_an_error_comes_in_its_place():
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("third")
        return item

    results = side_by_side(work, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)
