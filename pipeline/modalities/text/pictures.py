"""Pictures of texts for the report: the words as the teacher saw them, changes marked."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from difflib import SequenceMatcher
from html import escape

from pipeline.modalities.picture import Picture
from pipeline.modalities.text.words import BORDER, MASK, divided, pieces_of

_SIDE, _MOST_WORDS = 220, 60
_MASKED = "\u2588\u2588\u2588"
_STYLE = "font:13px/1.35 sans-serif;background:#fff;height:100%;overflow:hidden;overflow-wrap:anywhere"
_MARKED, _GONE = "background:#ffd54d", "color:#b00;text-decoration:line-through"


def picture_of(text: str, plain: str | None) -> Picture:
    """Return a picture of a text's first words.

    Args:
        text: of a view; a mask is `words.MASK`.
        plain: the un-augmented text; new and changed words are marked, words left out are struck through.
    """
    body = "".join(_marked(text, text if plain is None else plain))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIDE}" height="{_SIDE}">'
        f'<foreignObject width="{_SIDE}" height="{_SIDE}">'
        f'<div xmlns="http://www.w3.org/1999/xhtml" dir="auto" style="{_STYLE}">'
        f"{body}</div></foreignObject></svg>"
    )
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", _SIDE)


def _marked(text: str, plain: str) -> Iterator[str]:
    shown, before = _words(text), _words(plain)
    matched = SequenceMatcher(
        None, [word for _, word in before], [word for _, word in shown], autojunk=False
    )
    for what, first, last, start, stop in matched.get_opcodes():
        if what == "delete":
            yield from (_written(space, word, _GONE) for space, word in before[first:last])
        style = "" if what == "equal" else _MARKED
        yield from (_written(space, word, style) for space, word in shown[start:stop])


def _words(text: str) -> list[tuple[str, str]]:
    return [divided(piece) for piece in pieces_of(text.replace(BORDER, " | "))[:_MOST_WORDS]]


def _written(space: str, word: str, style: str) -> str:
    shown = "".join(
        character if character.isprintable() else "\ufffd" for character in word.replace(MASK, _MASKED)
    )
    inner = escape(shown)
    gap = " " if space else ""
    return f'{gap}<span style="{style}">{inner}</span>' if style else f"{gap}{inner}"
