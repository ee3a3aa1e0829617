"""Reading clips in `pipeline prepare`: decode, resample once, pack; remark on clips that sound wrong."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError, counted, first_of
from pipeline.core.files import write_bytes
from pipeline.core.hashing import bytes_glance, encoded_digests
from pipeline.core.progress import note
from pipeline.modalities.audio.decoding import Recording, SoundFile, to_rate
from pipeline.modalities.audio.form import AudioSource, audio_form
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.resampling import LOUDEST
from pipeline.samples.draft import require_none
from pipeline.samples.intake import (
    ArrayIntake,
    Entry,
    Identity,
    NoStatistics,
    Remarks,
    load_array,
    row_dtype,
)
from pipeline.samples.label_forms import label_word
from pipeline.samples.reading import Seat
from pipeline.samples.samples import Sample

FAULTY_LIST = "faulty.txt"
_SILENT_PEAK = 16  # 66 dB below full scale: less than the noise of any microphone
_SHORT_SECONDS = 0.05  # two frames of a usual spectrogram
# A limiter touches full scale once in a while. Clipping stays there for several samples in a row.
_STUCK = 12


class Fault(NamedTuple):
    """A remark on a clip: its bit, its name in dataset.json, and its description."""

    bit: int
    name: str
    text: str


FAULTS = (
    Fault(1, "silent", f"never louder than {_SILENT_PEAK} of {LOUDEST:,}"),
    Fault(2, "clipped", f"{_STUCK} or more samples stay at full scale"),
    Fault(4, "short", f"shorter than {_SHORT_SECONDS:g} seconds"),
    Fault(8, "cut", "the file ends before the length that its header gives, or without its last page"),
    Fault(16, "not finite", "NaN is read as silence, infinity as full scale"),
    Fault(32, "damaged", "a page's checksum differs, so its sound is missing"),
)


class AudioIntake(ArrayIntake):
    """Reads clips, resamples them to `data.sample_rate` and remarks on faults.

    Args:
        source: source of the clips.
        options: storage options.
    """

    step = "decode"
    files = (FAULTY_LIST,)

    def __init__(self, source: AudioSource, options: AudioOptions) -> None:
        super().__init__(audio_form(options.sample_rate, source.decoder))
        self._rate, self._source, self._options = options.sample_rate, source, options

    def read(self, sample: Sample, seat: Seat, identity: Identity) -> Entry:
        """Decode and resample a clip.

        Raises:
            DataError: the clip is unreadable, empty or much too long.
        """
        load = sample.load
        recording = load.read() if isinstance(load, SoundFile) else self._array(sample)
        clip = to_rate(recording, self._rate, sample.file or sample.name)
        seat.take(clip.size)
        digests = encoded_digests(clip, clip.shape, label_word(sample.label))
        glance = bytes_glance(clip.view(np.uint8))
        row = (*identity, clip.shape, *digests, glance, self._faults(recording))
        return Entry(np.array(row, row_dtype(self.form)), clip, NoStatistics())

    def _array(self, sample: Sample) -> Recording:
        clip = load_array(sample)
        if clip.dtype != np.int16 or clip.ndim != 1 or not clip.size or self._source.sample_rate is None:
            raise DataError(
                f"{sample.name}: {clip.dtype} of shape {clip.shape}; expected int16 (T,) of a "
                "source with a sample_rate, or a SoundFile; correct the source"
            )
        return Recording(np.ascontiguousarray(clip), self._source.sample_rate)

    def _faults(self, recording: Recording) -> int:
        """Return the bits of a recording's faults, before it is resampled."""
        loudness = np.abs(recording.samples.astype(np.int32))
        found = {
            "silent": int(loudness.max()) <= _SILENT_PEAK,
            "clipped": _stuck(recording.samples) >= _STUCK,
            "short": len(loudness) < _SHORT_SECONDS * recording.rate,
            "cut": recording.file.is_cut,
            "not finite": not recording.is_finite,
            "damaged": recording.file.is_damaged,
        }
        return sum(fault.bit for fault in FAULTS if found[fault.name])

    def require_sound(self, remarks: Remarks, count: int, state: Path) -> None:
        """Refuse to finish with faulty clips, if data.faulty asks for that.

        Raises:
            DataError: naming the first one.
        """
        if self._options.faulty != "refuse":
            return
        lines = [
            f"{file}: {fault.name}, i.e. {fault.text}; expected a sound clip, as data.faulty is refuse; "
            "replace or remove it"
            for fault in FAULTS
            for file in remarks.files(fault.bit)
        ]
        require_none(lines, f"of {count:,} clips are faulty", state)

    def tell(self, remarks: Remarks, folder: Path) -> None:
        """Print one line per kind of fault; list all faulty clips in the folder of the prepared dataset."""
        path, listed = folder / FAULTY_LIST, []
        path.unlink(missing_ok=True)
        for fault in FAULTS:
            found = remarks.files(fault.bit)
            listed += [f"{fault.name}\t{file}\n" for file in found]
            if found:
                note(
                    f"{fault.name}: {counted(len(found), 'clip')} ({fault.text}): {first_of(found)}; all "
                    f"are listed in {path}; replace or remove them, or set data.faulty to refuse"
                )
        if listed:
            write_bytes(path, "".join(listed).encode(errors="replace"))

    def count(self, remarks: Remarks) -> dict[str, int]:
        """Return the number of clips per fault, without zeros."""
        counts = {fault.name: len(remarks.files(fault.bit)) for fault in FAULTS}
        return {name: count for name, count in counts.items() if count}


def _stuck(samples: NDArray[np.int16]) -> int:
    """Return the number of samples that stand at the same end of the scale as the sample before."""
    full = np.abs(samples.astype(np.int32)) >= LOUDEST
    return int((full[1:] & (samples[1:] == samples[:-1])).sum())
