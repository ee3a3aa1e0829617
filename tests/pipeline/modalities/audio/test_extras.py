"""Clips need no library of images, texts or transformers, and soundfile for sound files alone."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for name in ("torchvision", "timm", "tokenizers", "transformers", "soundfile"):
    sys.modules[name] = None  # importing it fails
from pipeline.modalities.audio.modality import AUDIO
from pipeline.modalities.audio.options import AudioOptions
source = AUDIO.open_source("spoken-words-synthetic", AudioOptions())
assert len(source.train) == 1440
"""


def test_audio_is_opened_without_other_libraries():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
