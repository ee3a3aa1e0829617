"""Capture a resident training step, from rows to weights, as one CUDA graph; compare with plain calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.loading.loader import Batch
from pipeline.loading.targets import Targets
from pipeline.modalities.images.draw import view_parameters
from pipeline.modalities.images.rendering.device import DeviceParameters, DeviceRenderer
from pipeline.store.reader import LogitStore
from tests.benchmarks.student_epochs import Student
from tests.benchmarks.timing import alternated, compared
from tests.benchmarks.whole_job import Rig

WARM_UP, STEPS = 3, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphResult:
    """The result of a capture.

    Args:
        reason: why the step was not captured; empty if it was.
        speed: of the replayed step over the plain one, with its range.
        difference: largest difference of two students' weights after the same steps, relative to the
            change of the weights.
    """

    reason: str = ""
    speed: dict[str, float] | None = None
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


class ResidentStep:
    """A student's step on resident rows: gather, render, normalise, decode, learn.

    Args:
        rig: the student and its images, of one size.
        store: the teacher's logits; only the first view is used.
    """

    def __init__(self, rig: Rig, store: LogitStore) -> None:
        context, images = rig.context, rig.context.data.train
        self.student = rig.student()
        self._preprocessing = self.student.card.preprocessing
        drawn = view_parameters(rig.views, view=0, keys=images.keys, shapes=images.shapes)
        self._parameters = DeviceParameters.of(drawn, context.device)
        self._renderer = DeviceRenderer(
            images, self._preprocessing.size, context.device, self._preprocessing.interpolation
        )
        self._labels = torch.from_numpy(images.labels).to(context.device)
        self._logits = Targets(store, context.feed(images, rig.views, self._preprocessing)).load(0)
        self.rows = torch.zeros(rig.settings.batch_size, dtype=torch.int64, device=context.device)

    def batch(self) -> Batch:
        """Return the batch of the rows."""
        pixels = self._renderer.render_resident(self.rows, self._parameters[self.rows])
        return Batch(
            self._preprocessing.normalise(pixels),
            self._labels.index_select(0, self.rows),
            self._logits.logits(self.rows),
            np.zeros(0, np.int64),  # no rows on the host
            slice(0, len(self.rows)),
        )

    def __call__(self) -> None:
        """Run a step."""
        self.student.step(self.batch())

    def on(self, rows: Tensor) -> ResidentStep:
        """Return the step for different rows."""
        self.rows.copy_(rows)
        return self


def capture_and_compare(rig: Rig, store: LogitStore, *, rounds: int) -> GraphResult:
    """Capture a step and compare it with a plain one on the same rows; skip devices without CUDA graphs.

    Args:
        rig: the student.
        store: a store of one view.
        rounds: number of timed rounds.
    """
    if rig.context.device.type != "cuda":
        return GraphResult(reason="CUDA graphs need a CUDA device")
    orders = _orders(rig)
    plain, captured = (ResidentStep(rig, store).on(orders[0]) for _ in range(2))
    try:
        replay = capture(captured, captured.student)
    except RuntimeError as error:
        return GraphResult(reason=_first_cause(error))
    for _ in range(WARM_UP):
        plain()
    return compare(plain, captured, replay, orders, rounds=rounds)


def compare(
    plain: ResidentStep,
    captured: ResidentStep,
    replay: Callable[[], None],
    orders: list[Tensor],
    *,
    rounds: int,
) -> GraphResult:
    """Compare what two equal students learn from the same rows, and the times of their steps.

    Args:
        plain: the step to call.
        captured: the step to replay.
        replay: runs the captured step.
        orders: rows (B,) of some batches, on the device.
        rounds: number of timed rounds.
    """
    first, device = _weights(plain.student), plain.rows.device

    def plainly() -> None:
        for order in orders:
            plain.on(order)()

    def replayed() -> None:
        for order in orders:
            captured.on(order)
            replay()

    plainly(), replayed()
    moved = float((_weights(plain.student) - first).abs().max())
    apart = float((_weights(captured.student) - _weights(plain.student)).abs().max())
    times = alternated(rounds, device, {"plain": plainly, "replayed": replayed})
    return GraphResult(speed=compared(times["plain"], times["replayed"]), difference=apart / moved)


def capture(step: Callable[[], None], student: Student) -> Callable[[], None]:
    """Capture a step as a CUDA graph and return a function that replays it.

    Steps before the capture, on a side stream, do the one-time set-up: the optimiser's momentum, library
    handles and workspaces, the choice of algorithms.

    Raises:
        RuntimeError: part of the step cannot be captured.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    # Gradients are then allocated in the graph's memory pool.
    student.network.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _orders(rig: Rig) -> list[Tensor]:
    """Return rows of some batches, on the device."""
    count, size = len(rig.context.data.train), rig.settings.batch_size
    generator = np.random.default_rng(0)
    return [
        torch.from_numpy(generator.permutation(count)[:size]).to(rig.context.device) for _ in range(STEPS)
    ]


@torch.no_grad()
def _weights(student: Student) -> Tensor:
    return torch.cat([parameter.flatten().float() for parameter in student.network.parameters()]).clone()


def _first_cause(error: BaseException) -> str:
    """Return the first line of the first error: ending a broken capture fails too."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".partition("\n")[0]
