"""Build the built-in dataset from the four original idx files of Fashion-MNIST.

python -m tests.benchmarks.built_in_data RAW OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pipeline.core.hashing import named_arrays_digest
from pipeline.modalities.images.sources.arrays import select_subset

if __name__ == "__main__":
    subset = select_subset(Path(sys.argv[1]))
    np.savez_compressed(sys.argv[2], **subset)
    print(named_arrays_digest(subset))
