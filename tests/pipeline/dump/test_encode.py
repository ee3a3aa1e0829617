"""The downloader: what comes is what was sent, in order, one batch after it was sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dump.encode import Downloader, Examined, Received, RowFigures
from tests.pipeline.waiting import no_waiting_on_cuda


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    return torch.device(request.param)


def _batch(number: int, device: torch.device, rows: int = 6) -> Examined[torch.Tensor]:
    """Arrays of several kinds; `checked` has more or fewer rows than the others, and often none."""
    arrays = {
        "codes": torch.full((rows, 5), number % 256, dtype=torch.uint8, device=device),
        # A codec may call its arrays as it likes.
        "finite": torch.arange(rows, dtype=torch.float16, device=device) + number,
    }
    figures = RowFigures(
        finite=torch.arange(rows, device=device) != number,
        answers=torch.arange(rows, device=device) + number,
        same=torch.arange(rows, device=device) == number,
        divergences=torch.full((2, rows), number / 7, dtype=torch.float64, device=device).T,
    )
    few = torch.full((number % 3, 4), number, device=device)
    return Examined(arrays=arrays, rows=figures, checked=few)


def _named(batch: Examined[Any]) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    batch.map(found.setdefault)
    return found


def receive(downloader: Downloader, batches: Iterable[Examined[torch.Tensor]]) -> Iterator[Received]:
    """Yield each batch on the host as soon as it is there."""
    for batch in batches:
        before = downloader.send(batch)
        if before is not None:
            yield before
    last = downloader.finish()
    if last is not None:
        yield last


@pytest.mark.parametrize("sizes", [[6], [6, 6], [6] * 9, [1, 6, 2, 9, 9, 3], [9, 1, 1, 1], []])
def test_batches_of_any_size_come_in_order(device, sizes):
    downloader = Downloader(device)
    for _ in range(2):  # slots are used again
        received = receive(downloader, (_batch(n, device, rows) for n, rows in enumerate(sizes)))
        count = 0
        for n, batch in enumerate(received):
            expected = _named(_batch(n, device, sizes[n]).map(lambda _, v: v.cpu().numpy()))
            found = _named(batch)
            assert found.keys() == expected.keys()
            for name, values in found.items():
                assert values.dtype == expected[name].dtype
                np.testing.assert_array_equal(values, expected[name])
            count += 1
        assert count == len(sizes)


def test_a_batch_is_read_when_the_next_one_was_sent(device):
    """So the device has something to do meanwhile, and is never more than that ahead."""
    sent = 0

    def batches() -> Iterator[Examined[torch.Tensor]]:
        nonlocal sent
        for number in range(5):
            sent += 1
            yield _batch(number, device)

    received = receive(Downloader(device), batches())
    assert [(int(batch.arrays["codes"][0, 0]), sent) for batch in received] == [
        *((0, 2), (1, 3), (2, 4), (3, 5), (4, 5))
    ]


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_busy_device_is_not_waited_for_and_loses_nothing():
    device = torch.device("cuda")
    downloader = Downloader(device)
    list(receive(downloader, [_batch(0, device, 4000)] * 2))  # pinned room is made once

    def batches() -> Iterator[Examined[torch.Tensor]]:
        for number in range(20):
            # The device is late, and what it made is freed on the host before it has been copied.
            torch.cuda._sleep(10_000_000)
            yield _batch(number, device, 4000)

    with no_waiting_on_cuda():
        codes = [int(batch.arrays["codes"].min()) for batch in receive(downloader, batches())]
    assert codes == list(range(20))
