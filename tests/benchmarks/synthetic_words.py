"""Build the built-in set of synthetic spoken words: `python -m tests.benchmarks.synthetic_words OUT.npz`.

Needs espeak-ng 1.51 (Debian 12: apt-get install espeak-ng). Another version gives other samples, and then
the digest in `sources/builtin.py` must change. Two minutes on one core.
"""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.hashing import named_arrays_digest, sample_key
from pipeline.core.random import Words, between, draw
from pipeline.modalities.audio.resampling import resample
from pipeline.modalities.audio.sources.builtin import RATE, WORDS, encode_mu_law

# Variants of espeak-ng's voices: formants, breath and pitch of different speakers. Robots and whispers are
# left out. Whole voices are held out, so no voice is in two splits.
VOICES = {
    "train": (
        *("Alex", "Alicia", "Andy", "Annie", "Denis", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Mario"),
        *("Michael", "adam", "aunty", "belinda", "benjamin", "boris", "david", "ed", "edward", "john"),
        *("linda", "max", "miguel", "pablo", "pedro", "quincy", "rob", "steph", "zac", "f1", "f3"),
        *("klatt", "klatt3", "m2", "m5"),
    ),
    "validation": ("antonio", "caleb", "Diogo", "anika", "f5", "grandpa", "klatt4", "m8"),
    "test": (
        *("Andrea", "gustave", "iven", "marcelo", "paul", "robert", "steph3"),
        *("f2", "grandma", "klatt2", "m3", "m7"),
    ),
}
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-gb-scotland", "en-029")
TAKES = 2
_MARGIN = RATE // 50  # 20 ms around the word
_QUIET = 150  # 47 dB below full scale


@dataclass(frozen=True)
class Take:
    """One utterance."""

    split: str
    voice: str
    word: str
    number: int

    @property
    def name(self) -> str:
        """Name from which everything about it is drawn."""
        return f"{self.voice}/{self.word}/{self.number}"


def takes() -> Iterator[Take]:
    """Yield every utterance, in the order of the file."""
    for split, voices in VOICES.items():
        for voice in voices:
            for word in WORDS:
                yield from (Take(split, voice, word, number) for number in range(TAKES))


def say(take: Take) -> NDArray[np.int16]:
    """Synthesise one utterance: accent, speed and pitch are drawn by its name."""
    words: Words = draw(seed=20, view=0, keys=np.array([sample_key(take.name)], np.uint64), lane=0)
    accent = ACCENTS[int(between(words[0], 0, len(ACCENTS) - 1)[0])]
    speed, pitch = (int(between(words[1 + n], *ends)[0]) for n, ends in enumerate([(120, 230), (25, 75)]))
    said = ["espeak-ng", "-v", f"{accent}+{take.voice}", "-s", str(speed), "-p", str(pitch), "--stdout"]
    done = subprocess.run([*said, take.word], capture_output=True, check=True)
    with wave.open(io.BytesIO(done.stdout)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        return trimmed(resample(samples, file.getframerate(), RATE))


def trimmed(clip: NDArray[np.int16]) -> NDArray[np.int16]:
    """Remove the silence around a word, but for 20 ms."""
    loud = np.flatnonzero(np.abs(clip.astype(np.int32)) > _QUIET)
    return clip[max(0, loud[0] - _MARGIN) : loud[-1] + _MARGIN]


def require_voices() -> None:
    """Refuse an unknown voice: espeak-ng would speak with its usual one, without a word.

    Of the accents, en-gb does that with every voice, and is therefore left out.
    """
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, check=True, text=True)
    known = {part for part in listed.stdout.split() if part.startswith("!v/")}
    missing = [voice for group in VOICES.values() for voice in group if f"!v/{voice}" not in known]
    if missing:
        raise SystemExit(f"espeak-ng has no voice {', '.join(missing)}; expected version 1.51")


def main(out: Path) -> None:
    """Write the file and print its digest."""
    require_voices()
    every = list(takes())
    clips = [say(take) for take in every]
    splits, voices = list(VOICES), [voice for group in VOICES.values() for voice in group]
    arrays = {
        "codes": np.concatenate([encode_mu_law(clip) for clip in clips]),
        "lengths": np.array([len(clip) for clip in clips], np.uint16),
        "labels": np.array([WORDS.index(take.word) for take in every], np.uint8),
        "splits": np.array([splits.index(take.split) for take in every], np.uint8),
        "voices": np.array([voices.index(take.voice) for take in every], np.uint8),
        "voice_names": np.array(voices),
    }
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    print(f"{len(every):,} clips, {out.stat().st_size:,} bytes, digest {named_arrays_digest(arrays)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
