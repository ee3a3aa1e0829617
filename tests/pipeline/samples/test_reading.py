"""Pixels in memory are bounded, also where reading threads are ahead of the one who writes."""

from __future__ import annotations

import threading

import pytest

from pipeline.samples import reading
from pipeline.samples.reading import Room, in_order


@pytest.fixture
def small_room(monkeypatch):
    monkeypatch.setattr(reading, "Room", lambda: Room(100))


@pytest.mark.parametrize("size", [10, 50, 99, 1000])
def test_results_come_in_order_and_hold_no_more_than_the_room(small_room, size):
    lock, now, most = threading.Lock(), [0], [0]

    def work(item, seat):
        seat.take(size)
        with lock:
            now[0] += size
            most[0] = max(most[0], now[0])
        return item

    found = []
    for item in in_order(work, range(60), 4, iter(range(60))):
        found.append(item)
        with lock:
            now[0] -= size
    assert found == list(range(60))
    assert most[0] <= max(100, size) + size


def test_an_interruption_lets_waiting_threads_go(small_room):
    def work(item, seat):
        seat.take(90)
        return item

    results = in_order(work, range(20), 4, iter(range(20)))
    assert next(results) == 0
    results.close()
