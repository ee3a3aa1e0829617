"""Pictures of rendered samples for the report."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE, _MARGIN = 128, 6


@dataclass(frozen=True, slots=True)
class Picture:
    """A square picture, perhaps with a sound.

    Args:
        uri: a data URI.
        side: side in pixels; the report magnifies a small picture pixel by pixel.
        sound: a data URI to listen to; empty for none.
    """

    uri: str
    side: int
    sound: str = ""


def plotted(values: NDArray[np.integer[Any]]) -> Picture:
    """Plot the values of an array of any shape, in memory order, as an SVG picture."""
    flat = values.ravel().astype(np.float64)
    low, span = flat.min(initial=0.0), np.ptp(flat) if len(flat) else 0.0
    across = np.linspace(_MARGIN, _SIDE - _MARGIN, len(flat))
    down = _SIDE - _MARGIN - (flat - low) / (span or 1.0) * (_SIDE - 2 * _MARGIN)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across.tolist(), down.tolist(), strict=True))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE}">'
        f'<rect width="{_SIDE}" height="{_SIDE}" fill="white"/>'
        f'<polyline points="{points}" fill="none" stroke="black"/></svg>'
    )
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", _SIDE)
