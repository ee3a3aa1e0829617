"""What is said of a dump's speed, and how little is measured for it."""

from __future__ import annotations

import pytest
import torch

from pipeline.dump import speed
from pipeline.dump.run import cache_logits
from pipeline.dump.speed import Speed, Stopwatch

BATCH = 4


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def _dump(clock: Clock, batches: int, *, forward: float, added: float) -> tuple[Stopwatch, list[float]]:
    """Go through a dump whose batches take the seconds of a forward pass and some more."""
    stopwatch, passes = Stopwatch(BATCH), []

    def run(images: torch.Tensor) -> None:
        passes.append(clock.now)
        clock.now += forward

    with stopwatch.running(run, batches * BATCH):
        for _ in range(batches):
            images = torch.zeros(BATCH, 1, 2, 2)
            stopwatch.see(images)
            run(images)
            clock.now += added
    passes.clear()
    return stopwatch, passes


@pytest.mark.parametrize("forward", [0.001, 0.02, 0.7, 5.0])
def test_utilisation_is_what_the_teacher_alone_would_take(clock, forward):
    stopwatch, _ = _dump(clock, 200, forward=forward, added=forward / 4)
    found = stopwatch.speed()
    assert found.images == 800
    assert found.images_per_second == pytest.approx(BATCH / forward / 1.25)
    assert found.alone == pytest.approx(BATCH / forward)
    assert str(found).endswith("utilisation 80%")


@pytest.mark.parametrize("batches", [50, 200, 100_000])
@pytest.mark.parametrize("forward", [0.001, 0.3, 5.0])
def test_measuring_takes_a_second_or_a_fiftieth_or_one_pass(clock, batches, forward):
    stopwatch, passes = _dump(clock, batches, forward=forward, added=0.0)
    ended = clock.now
    stopwatch.speed()
    assert passes
    taken = clock.now - ended
    assert taken <= 2 * max(forward, min(1.0, 0.02 * ended)) + 1e-6


def test_a_small_dump_is_not_measured(clock):
    stopwatch, passes = _dump(clock, 49, forward=0.1, added=0.1)
    found = stopwatch.speed()
    assert found.alone is None
    assert not passes
    assert str(found) == "196 forward passes in 10 s, 20 samples/s"


def test_without_a_full_batch_nothing_is_measured(clock):
    stopwatch = Stopwatch(BATCH)
    with stopwatch.running(pytest.fail, 1000):
        stopwatch.see(torch.zeros(BATCH - 1, 1, 2, 2))
        clock.now += 1.0
    assert stopwatch.speed().alone is None


def test_what_was_broken_off_counts_for_nothing(clock):
    stopwatch = Stopwatch(BATCH)
    with pytest.raises(KeyboardInterrupt), stopwatch.running(pytest.fail, 1000):
        raise KeyboardInterrupt
    assert stopwatch.speed() is None


def test_speeds_are_said_in_one_line():
    assert str(Speed(images=36_000, seconds=15.2, alone=2500.0)) == (
        "36,000 forward passes in 15 s, 2,368 samples/s; the teacher alone 2,500 samples/s, utilisation 95%"
    )


def test_a_dump_says_how_fast_it_was(context, teacher, make_spec, tmp_path, capsys):
    path = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec(batch_size=2), path)
    count = 3 * len(context.data.train) + len(context.data.validation) + len(context.data.test)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"{path}: {count} forward passes in ")
    assert "; the teacher alone " in last
    assert last.endswith("%")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert not any(b"utilisation" in content or b"samples/s" in content for content in before.values())
    # Nothing is made, and nothing said of it.
    cache_logits(context, teacher, make_spec(batch_size=2), path)
    assert "samples/s" not in capsys.readouterr().err
