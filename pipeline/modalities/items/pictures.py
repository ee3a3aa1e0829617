"""Pictures of histories for the report: the latest items as a list, changes marked."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import printable
from pipeline.modalities.items.operations import MASKED
from pipeline.modalities.picture import Picture

_SIDE, _MOST, _LONGEST = 220, 12, 30
_MASK = "\u2588\u2588\u2588"
_STYLE = "font:12px/1.4 sans-serif;background:#fff;height:100%;overflow:hidden;white-space:nowrap"
_MARKED, _GONE = "background:#ffd54d", "color:#b00;text-decoration:line-through"


def listed(shown: NDArray[np.int32], plain: NDArray[np.int32] | None, items: Sequence[str]) -> Picture:
    """Return a picture of a history's latest items, the latest at the bottom.

    Args:
        shown: (n,) items of a view, -1 for hidden ones.
        plain: (m,) the un-augmented history; new places are marked, items left out are struck through.
        items: names of the catalogue.
    """
    lines = list(_lines(shown.tolist(), shown.tolist() if plain is None else plain.tolist(), items))
    more = [f"<div>… {len(lines) - _MOST:,} before</div>"] if len(lines) > _MOST else []
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIDE}" height="{_SIDE}">'
        f'<foreignObject width="{_SIDE}" height="{_SIDE}">'
        f'<div xmlns="http://www.w3.org/1999/xhtml" style="{_STYLE}">'
        f"{''.join([*more, *lines[-_MOST:]])}</div></foreignObject></svg>"
    )
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", _SIDE)


def _lines(shown: list[int], plain: list[int], items: Sequence[str]) -> Iterator[str]:
    for kind, first, last, start, stop in SequenceMatcher(None, plain, shown, autojunk=False).get_opcodes():
        if kind == "delete":
            yield from (_written(item, items, _GONE) for item in plain[first:last])
        style = "" if kind == "equal" else _MARKED
        yield from (_written(item, items, style) for item in shown[start:stop])


def _written(item: int, items: Sequence[str], style: str) -> str:
    name = _MASK if item == MASKED else items[item]
    cut = f"{name[: _LONGEST - 1]}…" if len(name) > _LONGEST else name
    inner = escape(printable(cut))
    return f'<div><span style="{style}">{inner}</span></div>' if style else f"<div>{inner}</div>"
