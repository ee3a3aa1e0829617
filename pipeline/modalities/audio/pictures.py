"""Pictures of clips for the report: a spectrogram to look at, and the clip to listen to."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from pipeline.modalities.audio.spectrogram import FULL_SCALE, Frames, log_mels
from pipeline.modalities.picture import Picture

_SIDE, _BANDS = 128, 64
# From the loudest value down; what is fainter is black.
_RANGE_NATS = 9.0  # 39 dB
# Dark violet, magenta, orange, pale yellow: RGB of equal steps of loudness.
_COLOURS = np.array([(8, 6, 30), (90, 24, 110), (190, 55, 85), (245, 140, 40), (252, 250, 190)])


def listened(clip: NDArray[np.int16], rate: int) -> Picture:
    """Return a clip (T,) int16 as a spectrogram with its sound.

    Args:
        clip: the samples.
        rate: samples per second.
    """
    return Picture(_uri("image/png", _spectrogram(clip, rate)), _SIDE, _uri("audio/wav", _wav(clip, rate)))


def _spectrogram(clip: NDArray[np.int16], rate: int) -> bytes:
    """Draw log-mel powers, time from left to right and pitch from bottom to top."""
    # 128 columns, whatever the clip's length.
    hop = max(1, len(clip) // _SIDE)
    size = max(256, 1 << (2 * hop - 1).bit_length())
    frames = Frames(
        sample_rate=rate,
        n_fft=size,
        win_length=size,
        hop_length=hop,
        n_mels=_BANDS,
        f_min=0.0,
        f_max=rate / 2,
    )
    waves = torch.from_numpy(clip.astype(np.float32) / FULL_SCALE)[None]
    powers = log_mels(waves, frames)[0].numpy()[::-1]
    shares = np.clip(1 + (powers - powers.max()) / _RANGE_NATS, 0, 1) * (len(_COLOURS) - 1)
    steps = np.arange(len(_COLOURS))
    pixels = np.stack([np.interp(shares, steps, _COLOURS[:, c]) for c in range(3)], axis=-1)
    image = PIL.Image.fromarray(np.rint(pixels).astype(np.uint8)).resize((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _wav(clip: NDArray[np.int16], rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(clip.astype("<i2").tobytes())
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
