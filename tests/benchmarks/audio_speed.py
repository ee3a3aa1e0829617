"""Views of clips rendered per CPU second, against audiomentations, for the chain of the preset `audio`.

    pip install audiomentations                           (with its librosa, scipy and soxr)
    python -m tests.benchmarks.audio_speed [--clips 256] [--rounds 5] [--out FILE.json]

Both get the same clips in memory, noise of 0.4 to 1.2 seconds, and give windows of one second. One thread.

* ours: the views of stages/presets/audio.yaml, drawn and rendered in batches of 64, int16;
* audiomentations: AdjustDuration, Shift, Gain, TimeMask and BandStopFilter with the same ranges and
  probabilities, clip by clip in float32, as in a Dataset. It has no change of speed by resampling: a Lambda
  calls soxr, its own resampler. A second chain is without `speed`, and a third adds background noise and
  polarity.

Rounds alternate. Printed are CPU seconds, which other programs on the machine hardly change, and the ratio
audiomentations / ours of each round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from numpy.typing import NDArray

from pipeline.core.hashing import sample_key
from pipeline.modalities.audio.form import audio_form
from pipeline.modalities.audio.operations import BackgroundNoise, Polarity
from pipeline.modalities.audio.preprocessing import AudioPreprocessing
from pipeline.modalities.audio.rendering import AudioViews
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.samples.packed import PackedSplit
from pipeline.samples.samples import Names
from pipeline.views.pairing import Singles
from stages.own_types import checked
from stages.preset import presets
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment

Work = Callable[[], object]
RATE, SIZE, BATCH = 16_000, 16_000, 64


def clips(count: int) -> PackedSplit:
    """Return clips of noise in memory."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(-9000, 9000, n).astype(np.int16)
        for n in generator.integers(6_400, 19_200, count)
    ]
    sizes, names = [len(array) for array in arrays], [f"train/{row}" for row in range(count)]
    return PackedSplit(
        values=np.concatenate(arrays),
        form=audio_form(RATE),
        offsets=np.cumsum([0, *sizes[:-1]]).astype(np.int64),
        shapes=np.array(sizes, np.int32)[:, None],
        labels=np.zeros(count, np.int64),
        keys=np.array([sample_key(name) for name in names], np.uint64),
        digests=np.zeros(count, np.uint64),
        names=Names.of(names),
    )


def ours(split: PackedSplit, spec: AudioViewSpec) -> Work:
    """Return a function that renders one view of all clips, a new view per call."""
    renderer = AudioViews(split, spec, Singles(len(split)), AudioPreprocessing.usual(SIZE, RATE))
    views = itertools.count()

    def work() -> None:
        view = next(views)
        for start in range(0, len(split), BATCH):
            renderer.render(view, np.arange(start, min(start + BATCH, len(split))))

    return work


def theirs(split: PackedSplit, spec: AudioViewSpec) -> Work:
    """Return a function that passes each clip through audiomentations' transforms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import audiomentations as am

    shift, gain, time_mask = spec.shift, spec.gain, spec.time_mask
    chain: list[Any] = [am.Lambda(transform=_speed(spec.speed.factors), p=1.0)] if spec.speed else []
    chain.append(am.AdjustDuration(duration_samples=SIZE, p=1.0))
    if shift is not None:
        bounds = {"min_shift": -shift.seconds, "max_shift": shift.seconds, "shift_unit": "seconds"}
        chain.append(am.Shift(**bounds, rollover=False, p=1.0))
    if spec.polarity is not None:
        chain.append(am.PolarityInversion(p=spec.polarity.probability))
    if gain is not None:
        chain.append(am.Gain(min_gain_db=gain.min_db, max_gain_db=gain.max_db, p=gain.probability))
    if spec.background_noise is not None:
        kind = spec.background_noise
        decibels = {"min_snr_db": kind.min_snr_db, "max_snr_db": kind.max_snr_db}
        chain.append(am.AddBackgroundNoise(kind.folder, **decibels, p=kind.probability))
    if time_mask is not None:
        longest = {"min_band_part": 0.0, "max_band_part": time_mask.longest}
        chain.append(am.TimeMask(**longest, p=time_mask.probability))
    if spec.frequency_mask is not None:
        chain.append(am.BandStopFilter(p=spec.frequency_mask.probability))
    augment = am.Compose(chain)
    floats = [split.array(row).astype(np.float32) / 32768 for row in range(len(split))]

    def work() -> None:
        for clip in floats:
            augment(samples=clip, sample_rate=RATE)

    return work


def _speed(factors: Sequence[float]) -> Callable[..., NDArray[np.float32]]:
    """Return a function that plays a clip at a random speed, at soxr's usual quality."""
    import soxr

    def transform(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        factor = random.choice(factors)
        if factor == 1:
            return samples
        played: NDArray[np.float32] = soxr.resample(samples, sample_rate, sample_rate / factor)
        return played

    return transform


def cpu_seconds(work: Work) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(split: PackedSplit, chains: Mapping[str, AudioViewSpec], rounds: int) -> dict[str, Any]:
    """Time both libraries on each chain, in alternation."""
    found = {}
    for name, spec in chains.items():
        works = ours(split, spec), theirs(split, spec)
        for work in works:
            work()
        times = [[cpu_seconds(work) for work in works] for _ in range(rounds)]
        ratios = [their / our for our, their in times]
        found[name] = {
            "ours_views_per_cpu_second": round(len(split) / statistics.median(our for our, _ in times)),
            "audiomentations_views_per_cpu_second": round(
                len(split) / statistics.median(t for _, t in times)
            ),
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        }
    return found


def preset_views() -> AudioViewSpec:
    """Return the views of the preset."""
    plain = yaml.safe_load(presets()["audio"])["dumps"]["main"]["views"]
    spec: AudioViewSpec = checked(AudioViewSpec, {k: v for k, v in plain.items() if k != "count"})
    return spec


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does; it helps both
    split, preset = clips(asked.clips), preset_views()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            noise = np.random.default_rng(number).integers(-3000, 3000, 5 * RATE).astype(np.int16)
            soundfile.write(f"{folder}/{number}.wav", noise, RATE)
        without = replace(preset, speed=None)
        noisy = replace(without, background_noise=BackgroundNoise(folder=folder), polarity=Polarity())
        chains = {"preset": preset, "without speed": without, "with noise and polarity": noisy}
        found = measure(split, chains, asked.rounds)
    text = json.dumps({"environment": environment(torch.device("cpu")), "chains": found}, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
