"""A modality that is not the project's own: waveforms of one length, and views that shift them in time.

A test names it in params.yaml as `waves:WAVES`; nothing of the project knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.core.random import Lane, draw
from pipeline.modalities.modality import DataOptions, Modality
from pipeline.modalities.preprocessing import UsualPreprocessing, UsualRenderer, UsualViews
from pipeline.samples.index import Form
from pipeline.samples.intake import ArraySource
from pipeline.samples.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveOptions(DataOptions):
    tones: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifts(UsualViews):
    seed: int = 0
    farthest: int = 8
    mixes = False

    def canonical(self) -> dict[str, Any]:
        return {"semantics": 1, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(UsualPreprocessing):
    size: int
    loudest: float = 6000.0
    channels = 1

    def normalise(self, rendered):
        return rendered.float()[:, None] / self.loudest

    def example(self, count, generator=None):
        if generator is None:
            return torch.zeros(count, self.size, dtype=torch.int16)
        return torch.randint(-9000, 9000, (count, self.size), generator=generator, dtype=torch.int16)

    def renderer(self, samples, views, pairing, *, device, on_device):
        return Shifted(samples, views, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenScale:
    size: int | None = None
    loudest: float | None = None

    def said(self):
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, known):
        return Scaled(**{**asdict(known), **self.said()})

    def alone(self, origin):
        return Scaled(**self.said())


class Shifted(UsualRenderer):
    dtype = torch.int16

    def __init__(self, samples, views, preprocessing):
        self._samples, self._views, self.shape = samples, views, (preprocessing.size,)

    def render(self, view, rows):
        shifts = np.zeros(len(rows), np.int64)
        if self._views is not None:
            keys = self._samples.keys[rows]
            words = draw(seed=self._views.seed, view=view, keys=keys, lane=Lane.CROP)
            shifts = words[0].astype(np.int64) % (self._views.farthest + 1)
        waves = [
            np.resize(np.roll(self._samples.array(row), shift), self.shape)
            for row, shift in zip(rows.tolist(), shifts.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(waves))

    def for_model(self, preprocessing):
        return Shifted(self._samples, self._views, preprocessing)


class Waves(Modality):
    name = "waves:WAVES"
    options_type, views_type, preprocessing_type = WaveOptions, Shifts, GivenScale

    def open_source(self, source: str, options: WaveOptions) -> ArraySource:
        def wave(number: int) -> np.ndarray:
            tone, noise = number % options.tones, np.random.default_rng(number)
            time = np.arange(64 + number % 5)
            values = 9000 * np.sin(time * 0.3 * (tone + 1)) + noise.normal(0, 500, len(time))
            return values.astype("int16")

        def split(name: str, start: int, count: int) -> list[Sample]:
            numbers = range(start, start + count)
            return [Sample(f"{name}/{n}", n % options.tones, partial(wave, n)) for n in numbers]

        classes = tuple(f"tone {number}" for number in range(options.tones))
        train, test = split("train", 0, 96), split("test", 96, 30)
        return ArraySource(classes=classes, train=train, test=test, form=Form(dtype="int16", axes=1))

    def views(self, plain: Mapping[str, Any]) -> Shifts:
        return Shifts(seed=plain["seed"], farthest=plain["farthest"])

    def preprocessing(self, plain: Mapping[str, Any]) -> Scaled:
        return Scaled(size=plain["size"], loudest=plain["loudest"])

    def fresh_preprocessing(self, samples, known, *, size, channels):
        return Scaled(size=size or int(samples.shapes.min()))


WAVES = Waves()


def ears(num_classes: int, width: int = 16) -> nn.Module:
    """Return a small network for waveforms (B, 1, T)."""
    body = nn.Conv1d(1, width, 9, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4 * width, num_classes))
