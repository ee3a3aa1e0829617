"""The modality `audio`: connects its sources, views, rendering and model families to the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ModelError
from pipeline.modalities.audio.decoding import AUDIO_FILES, sound_header
from pipeline.modalities.audio.form import AudioForm, AudioSource
from pipeline.modalities.audio.intake import AudioIntake
from pipeline.modalities.audio.models.keywords import AudioLiterature
from pipeline.modalities.audio.models.transformers import AudioTransformers
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.pictures import listened
from pipeline.modalities.audio.preprocessing import AudioPreprocessing, GivenAudio
from pipeline.modalities.audio.sources import open_source
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.modalities.audio.trial import open_sounds
from pipeline.modalities.modality import Modality, Recognised
from pipeline.modalities.picture import Picture
from pipeline.samples.files import holds_mostly
from pipeline.samples.index import Form
from pipeline.samples.packed import Split
from pipeline.samples.samples import Sample


class Audio(Modality):
    """Clips (T,) int16, one channel."""

    name = "audio"
    families = (AudioLiterature(), AudioTransformers())
    options_type = AudioOptions
    views_type = AudioViewSpec
    preprocessing_type = GivenAudio

    def open_source(self, source: str, options: AudioOptions) -> AudioSource:
        """Find a dataset of clips; see `sources`."""
        return open_source(source, options)

    def intake(self, source: AudioSource, folder: Path, options: AudioOptions) -> AudioIntake:
        """Return the reader of clips for `pipeline prepare`."""
        return AudioIntake(source, options)

    def described(self, plain: Mapping[str, Any]) -> tuple[AudioForm, dict[str, Any]]:
        """Return the clips' form; their statistics belong to each model's preprocessing."""
        return AudioForm.parse(plain), {}

    def recognise(self, path: Path, name: str) -> Recognised | None:
        """Return how to read a folder most of whose first files are sounds."""
        return Recognised(source=f"folder:{name}") if holds_mostly(AUDIO_FILES, path) else None

    def open_files(self, folder: Path, preprocessing: AudioPreprocessing, count: int) -> Split:
        """Decode some sound files, evenly spread over a folder, at the model's rate of rendered clips."""
        return open_sounds(folder, preprocessing.rendered_rate, count)

    def extents(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Return samples and samples per second (n, 2) of sound files; 0 if a header has none."""
        headers = [sound_header(Path(sample.file)) if sample.file else None for sample in samples]
        return np.array([header or (0, 0) for header in headers], np.int64).reshape(-1, 2)

    def picture(
        self,
        shown: NDArray[np.integer[Any]],
        plain: NDArray[np.integer[Any]] | None = None,
        *,
        form: Form | None = None,
    ) -> Picture:
        """Return a clip (T,) int16 as a spectrogram with its sound."""
        return listened(shown.astype(np.int16), cast(AudioForm, form).sample_rate)

    def views(self, plain: Mapping[str, Any]) -> AudioViewSpec:
        """Return the views described by a canonical form."""
        return AudioViewSpec.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> AudioPreprocessing:
        """Return the preprocessing described by plain values."""
        return AudioPreprocessing.parse(plain)

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> AudioPreprocessing:
        """Return the usual spectrogram of clips as long as `size`, or as the longest training clip.

        Raises:
            ModelError: the network is to have several channels.
        """
        if channels not in (None, 1):
            raise ModelError(f"channels is {channels}; expected 1, as clips have one channel; remove it")
        form: Any = samples.form
        return AudioPreprocessing.usual(size or int(samples.shapes.max()), form.sample_rate)

    def measured(self, preprocessing: AudioPreprocessing, samples: Split) -> AudioPreprocessing:
        """Return a preprocessing with its mean and std over training clips, if they are not known."""
        is_known = preprocessing.mean is not None and preprocessing.std is not None
        return preprocessing if is_known else preprocessing.measured(samples)


AUDIO = Audio()
