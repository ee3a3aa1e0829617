"""Choose a codec on a pilot: measure each candidate on the exact bytes that the store would hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import zarr
from torch import Tensor, nn
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline.codecs import ABSOLUTE, Codec, Rule, TeacherOutput, find_codec, is_own_codec
from pipeline.codecs.codebooks import fit_vectors
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_digits, fit_features
from pipeline.codecs.spec import AUTO, DIGITS, FEATURES, CodecSpec
from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.progress import note
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.models.teacher import Teacher
from pipeline.store.frame import compressor, create_array
from pipeline.store.layout import CHUNK_ROWS, ZARR_JSON, Layout, Section
from pipeline.tasks.task import Task

_MOST_ROWS, _FEWEST_ROWS, _CODEBOOK_ROWS = 2048, 256, 8192
_SHARE = 64
_BATCHES_AT_LEAST = 4
Files = dict[str, Buffer]
_DENSE = ("affine8", "affine6", "affine4", "fp16")
# Attempts to fit `features`, and the safety factor on the error budget of each further attempt.
_FITS, _CLOSER = 3, 0.95
_KEPT = (5, 10, 20, 50, 100, 200)
# One of so many rows of a pilot measures codebooks that the others fitted; below 64 rows, all do both.
_UNSEEN, _ENOUGH_TO_DIVIDE = 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A codec as measured on the pilot.

    Args:
        codec: the codec.
        bytes_per_row: compressed bytes per sample and view.
        state_bytes: compressed bytes of the codec's state, stored once.
        state_files: number of files of that state.
        fidelity: divergence on the pilot.
        seconds_per_row: time to encode, decode and compare, as the dump does.
    """

    codec: Codec
    bytes_per_row: float
    state_bytes: int
    state_files: int
    fidelity: Fidelity
    seconds_per_row: float

    def total_bytes(self, rows: int) -> int:
        """Return the size of a store with this many rows (samples times views)."""
        return self.state_bytes + math.ceil(self.bytes_per_row * rows)

    def describe(self, task: Task) -> str:
        """Return size and cost in one line."""
        return f"{self.codec.name}: {self.bytes_per_row:.1f} bytes per view, {task.describe(self.fidelity)}"


def measure(codec: Codec, pilot: Pilot, rule: Rule) -> Candidate:
    """Encode, compress and decode the pilot with a codec, and measure by a rule.

    Raises:
        ConfigError: a codec of user code decodes to values that are not finite.
    """
    start = time.perf_counter()
    encoded = codec.encode(pilot.output, rule)
    decoded = codec.decode(encoded)
    if is_own_codec(codec.name) and not bool(decoded.isfinite().all()):
        raise ConfigError(
            f"codec {codec.name} does not decode the pilot's logits to finite numbers; expected no "
            "NaN and no infinity; correct it"
        )
    fidelity = Fidelity.measure(rule, pilot.output.logits, decoded)
    seconds = time.perf_counter() - start
    state = _state_files(codec.state)
    return Candidate(
        codec=codec,
        bytes_per_row=_chunk_bytes(_shard_files(codec, encoded)) / len(pilot),
        state_bytes=_chunk_bytes(state),
        state_files=len(state),
        fidelity=fidelity,
        seconds_per_row=seconds / len(pilot),
    )


def choose_codec(
    spec: CodecSpec, pilot: Pilot, task: Task, *, head: nn.Linear | None, rows: int
) -> Candidate:
    """Return the smallest codec that fits a spec's budget, measured on the pilot.

    Args:
        spec: a codec's name, or auto.
        pilot: the teacher's outputs for a few samples.
        task: the meaning of outputs.
        head: the teacher's last linear layer, if it has one.
        rows: samples times views of the dump; they share the bytes of a codec's state.

    Raises:
        ConfigError: every codec exceeds the budget.
        ModelError: the codec needs features and the teacher has none.
    """
    candidates = list(_candidates(spec, pilot, task, head))
    budget = math.inf if spec.budget is None else spec.budget
    fitting = [c for c in candidates if c.fidelity.within(budget)]
    for candidate in candidates:
        omitted = _tail_mass(candidate.codec, pilot)
        kept = "" if candidate in fitting else f": above {budget:g}, refused{omitted}"
        note(f"pilot: {candidate.describe(task)}{kept}")
    if not fitting:
        closest, absolute = min(candidates, key=lambda c: c.fidelity.worst), task.measures.is_absolute
        raise ConfigError(
            f"codec {spec.under(absolute=absolute)}: exceeds its error budget on the pilot: "
            f"{closest.describe(task)}{_tail_mass(closest.codec, pilot)}; expected at most {budget:g} on "
            f"average; raise {'max_error' if absolute else 'max_kl'}, or choose a different codec"
        )
    return min(fitting, key=lambda c: c.total_bytes(rows))


def _candidates(spec: CodecSpec, pilot: Pilot, rule: Rule, head: nn.Linear | None) -> Iterator[Candidate]:
    n_outputs, absolute = pilot.output.logits.shape[1], rule.measures.is_absolute
    if spec.vector is not None:
        yield _of_vectors(*spec.vector, pilot, rule)
        return
    if spec.name not in (AUTO, FEATURES, DIGITS):
        yield measure(find_codec(spec.name, n_outputs, absolute=absolute), pilot, rule)
        return
    if spec.name == AUTO:
        kept = () if absolute else (k for k in _KEPT if 2 * k < n_outputs)
        dense = [name for name in _DENSE if not absolute or name in ABSOLUTE]
        for name in (*dense, *(f"topk-{k}" for k in kept)):
            yield measure(find_codec(name, n_outputs, absolute=absolute), pilot, rule)
    if spec.name == FEATURES:
        pilot.output.require_features()
    if spec.budget is None:
        return
    if spec.name == DIGITS or (spec.name == AUTO and absolute):
        yield _fitted(partial(fit_digits, pilot.output, rule=rule), pilot, spec.budget, rule)
    if spec.name != DIGITS and head is not None and pilot.output.features is not None:
        yield _fitted(partial(fit_features, pilot.output, head, rule=rule), pilot, spec.budget, rule)


def _of_vectors(stem: str, number: int, pilot: Pilot, rule: Rule) -> Candidate:
    """Fit codebooks to seven of eight rows of the pilot, and measure them on the eighth."""
    rows = torch.arange(len(pilot), device=pilot.output.logits.device)
    unseen = rows % _UNSEEN == 0
    if len(pilot) < _ENOUGH_TO_DIVIDE:
        return measure(fit_vectors(pilot.output, stem, number, rule), pilot, rule)
    codec = fit_vectors(pilot.output[~unseen], stem, number, rule)
    return measure(codec, Pilot(pilot.output[unseen], pilot.images_per_second), rule)


def _fitted(fit: Callable[..., Codec], pilot: Pilot, budget: float, rule: Rule) -> Candidate:
    """Fit a codec to some rows of the pilot; refit more finely if the whole pilot exceeds the budget."""
    aim = budget
    for _ in range(_FITS):
        candidate = measure(fit(budget=aim), pilot, rule)
        if candidate.fidelity.within(budget):
            break
        # Budget 0.01, measured 0.02: aim for 0.95 * 0.01 / 0.02 = 0.475 of the aim before.
        aim *= _CLOSER * budget / candidate.fidelity.worst
    return candidate


def _tail_mass(codec: Codec, pilot: Pilot) -> str:
    """Describe the probability that a top-k codec leaves out."""
    if codec.kept is None:
        return ""
    masses = [_left_out(pilot.output.logits, codec.kept, t) for t in (1.0, 4.0)]
    return f", {masses[0]:.1%} of the probability omitted at T = 1, {masses[1]:.1%} at T = 4"


def _left_out(logits_BC: Tensor, kept: int, temperature: float) -> float:
    probabilities = torch.softmax(logits_BC.double() / temperature, 1)
    return float(1 - probabilities.topk(kept, 1).values.sum(1).mean())


def _shard_files(codec: Codec, encoded: Mapping[str, Tensor]) -> Files:
    """Return the shard that a store would write."""
    count = len(next(iter(encoded.values())))
    layout = Layout(codec=codec.name, arrays=codec.arrays, n_classes=1, shard_rows=CHUNK_ROWS, sections={})
    section = Section(name="pilot", extents=((0, count),), n_views=1)
    files: Files = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3)
    for name, values in encoded.items():
        create_array(group, layout, section, name)[0] = values.cpu().numpy()
    return files


def _state_files(state: Mapping[str, Tensor]) -> Files:
    """Return the files of a codec's state, as a store would write them."""
    files: Files = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3)
    for name, values in state.items():
        group.create_array(name, data=values.cpu().numpy(), compressors=[compressor()])
    return files if state else {}


def _chunk_bytes(files: Files) -> int:
    return sum(len(content) for name, content in files.items() if not name.endswith(ZARR_JSON))


@dataclass(frozen=True, slots=True)
class Pilot:
    """A teacher's outputs for a few training samples in the first views.

    Args:
        output: n rows, on the device.
        images_per_second: speed of rendering and forward passes, without the first (warm-up) batch.
    """

    output: TeacherOutput
    images_per_second: float

    def __len__(self) -> int:
        return len(self.output.logits)


def pilot_rows(
    n_samples: int, n_views: int, foretold: int | None = None, *, for_codebooks: bool = False
) -> tuple[int, int]:
    """Return the numbers of samples and views of a pilot; one view, unless samples are few.

    A pilot has 1/64 of the dump's rows, at least 256 and at most 2,048; 8,192 for codebooks, which need
    many rows for each of 256 codewords.

    Args:
        n_samples: samples of the data.
        n_views: views of the dump.
        foretold: samples of a larger dump to forecast; None for those of the data.
        for_codebooks: whether the codec has codebooks.
    """
    rows = (foretold or n_samples) * n_views
    wanted = min(_MOST_ROWS, max(_FEWEST_ROWS, rows // _SHARE))
    if for_codebooks:
        wanted = min(_CODEBOOK_ROWS, rows)
    return min(n_samples, wanted), min(n_views, -(-wanted // n_samples))


def run_pilot(context: RunContext, teacher: Teacher, spec: DumpSpec, foretold: int | None = None) -> Pilot:
    """Run the teacher over samples spread evenly over the training split.

    Args:
        context: the data and the device.
        teacher: the model to run.
        spec: the dump's settings.
        foretold: training samples of a larger dump to forecast; None for those of the data.

    Raises:
        DataError: a sample differs from the prepared one.
        ModelError: logits are not finite.
    """
    images = context.data.train
    count, n_views = pilot_rows(
        len(images), spec.view_count, foretold, for_codebooks=spec.codec.vector is not None
    )
    size = min(spec.batch_size, -(-count // _BATCHES_AT_LEAST))
    feed = context.feed(images, spec.views, teacher.card.preprocessing)
    batches = [
        (view, rows[start : start + size])
        for view in range(n_views)
        for rows in [feed.spread(view, count)]
        for start in range(0, len(rows), size)
    ]
    images.require_unchanged(np.unique(np.concatenate([rows for _, rows in batches])))
    outputs, times = [], [time.perf_counter()]
    for batch in feed.stream(batches):
        outputs.append(teacher.output(batch))
        # `bool` also waits for the device; without that, the clock would measure kernel launches.
        if not bool(outputs[-1].are_finite().all()):
            raise ModelError(
                f"teacher {teacher.name!r} returns non-finite logits for training samples; expected finite "
                "numbers; use precision: fp32, or different weights"
            )
        times.append(time.perf_counter())
    return Pilot(_joined(outputs), _rate([len(batch) for _, batch in batches], times))


def _joined(outputs: list[TeacherOutput]) -> TeacherOutput:
    features = [output.features for output in outputs if output.features is not None]
    logits = torch.cat([output.logits for output in outputs])
    return TeacherOutput(logits, torch.cat(features) if len(features) == len(outputs) else None)


def _rate(sizes: list[int], times: list[float]) -> float:
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / (times[-1] - times[first])
