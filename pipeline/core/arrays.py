"""Names of arrays that many rooms hand to each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Positions of samples in a split, or of rows in a store: (n,) int64.
Rows = NDArray[np.int64]
