"""The staged path: a ring of slots keeps order, tells what failed, and is used again and again."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.core.errors import DataError
from pipeline.loading.feed import Feed
from pipeline.loading.prefetch import PrefetchQueue
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from tests.patience import HANGING_SECONDS

CPU = torch.device("cpu")
SHAPE = (8, 8, 3)
# So large that a batch is rendered in parts.
LARGE = (512, 512, 3)


def _image(view: int, row: int, shape=SHAPE) -> torch.Tensor:
    return torch.full(shape, (37 * view + row) % 256, dtype=torch.uint8)


def _render(view: int, rows: np.ndarray, shape=SHAPE) -> torch.Tensor:
    return torch.stack([_image(view, int(row), shape) for row in rows])


def _requests(*sizes: int) -> list[tuple[int, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(view, generator.integers(0, 200, size)) for view, size in enumerate(sizes)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("shape", [SHAPE, LARGE], ids=["small", "large"])
def test_batches_of_any_size_come_in_order(workers, shape):
    ring = PrefetchQueue(lambda view, rows: _render(view, rows, shape), shape, CPU, workers=workers)
    requests = _requests(5, 1, 9, 3, 9, 2, 7)
    for (view, rows), pixels in zip(requests, ring.stream(requests), strict=True):
        assert torch.equal(pixels, _render(view, rows, shape))


def test_a_large_batch_is_rendered_by_all_threads_together():
    together = threading.Barrier(4, timeout=HANGING_SECONDS)

    def render(view, rows):
        together.wait()
        return _render(view, rows, LARGE)

    (pixels,) = PrefetchQueue(render, LARGE, CPU, workers=4).stream(_requests(12))
    assert len(pixels) == 12


def test_slots_are_used_again():
    ring = PrefetchQueue(_render, SHAPE, CPU, workers=2)
    places = {pixels.data_ptr() for pixels in ring.stream(_requests(*[6] * 40))}
    for _ in range(3):
        places |= {pixels.data_ptr() for pixels in ring.stream(_requests(*[6] * 40))}
    assert len(places) <= 5


def test_a_stream_that_is_left_early_leaves_the_ring_as_it_was():
    ring = PrefetchQueue(_render, SHAPE, CPU, workers=2)
    for _ in range(5):
        assert len(list(islice(ring.stream(_requests(*[4] * 30)), 3))) == 3
    requests = _requests(4, 4, 4)
    for (view, rows), pixels in zip(requests, ring.stream(requests), strict=True):
        assert torch.equal(pixels, _render(view, rows))


def test_two_streams_at_once_do_not_disturb_each_other():
    ring = PrefetchQueue(_render, SHAPE, CPU, workers=2)
    first, second = _requests(*[5] * 9), _requests(*[3] * 9)[::-1]
    for one, other, (a, b) in zip(
        ring.stream(first), ring.stream(second), zip(first, second, strict=True), strict=True
    ):
        assert torch.equal(one, _render(*a))
        assert torch.equal(other, _render(*b))


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_what_a_thread_raised_is_raised_in_its_turn_and_the_ring_goes_on(bad):
    def render(view, rows):
        if view == bad:
            raise DataError("this one")
        return _render(view, rows)

    ring = PrefetchQueue(render, SHAPE, CPU, workers=2)
    stream = ring.stream(_requests(*[4] * 8))
    for _ in range(bad):
        next(stream)
    with pytest.raises(DataError, match="this one"):
        next(stream)
    assert len(list(ring.stream([(9, np.arange(3))]))) == 1


def test_slots_filled_while_evaluating_serve_training():
    ring = PrefetchQueue(_render, SHAPE, CPU, workers=1)
    with torch.inference_mode():
        list(ring.stream(_requests(4, 4)))
    for pixels in ring.stream(_requests(4, 4)):
        assert not pixels.is_inference()


def test_a_sample_that_cannot_be_rendered_is_named(random_image, pack_images):
    images = pack_images(
        [random_image(8, 8, 3, n) for n in range(6)], names=[f"photo-{n}" for n in range(6)]
    )
    shapes = images.shapes.copy()
    shapes[4] = 9, 90
    broken = replace(images, shapes=shapes)
    preprocessing = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    feed = Feed(broken, ViewSpec(), preprocessing, device=CPU)
    with pytest.raises(DataError, match="sample 'photo-4'"):
        list(feed.batches(0, [np.arange(3), np.arange(3, 6)]))
