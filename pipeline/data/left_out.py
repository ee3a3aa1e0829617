"""What a source holds and does not give: counted by reason, so that nothing is passed over in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import counted, first_of

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Counts of what is not read.

    Args:
        suffixes: suffix -> files in class folders that have it; of a file without one it is "no suffix".
        loose: folder -> image files that lie in it and in no class folder.
        hidden: files and folders whose name begins with a dot, and the systems' own, e.g. Thumbs.db.
        linked_back: linked folders that lead back to a folder that they are in.
        unused: names of folders, arrays or splits that are not looked at.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    loose: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked_back: int = 0
    unused: tuple[str, ...] = ()

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            suffixes=self.suffixes + other.suffixes,
            loose=self.loose + other.loose,
            hidden=self.hidden + other.hidden,
            linked_back=self.linked_back + other.linked_back,
            unused=self.unused + other.unused,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, without those of nothing."""
        values = {
            "suffixes": dict(sorted(self.suffixes.items())),
            "loose": dict(sorted(self.loose.items())),
            "hidden": self.hidden,
            "linked_back": self.linked_back,
            "unused": list(self.unused),
        }
        return {name: value for name, value in values.items() if value}

    def __str__(self) -> str:
        """One line, empty if nothing is left out.

        >>> print(LeftOut(suffixes=Counter({".heic": 3, ".mp4": 1}), loose=Counter({"train/": 6})))
        4 files (.heic 3, .mp4 1), 6 loose in train/
        """
        parts = [f"{count:,} loose in {folder}" for folder, count in sorted(self.loose.items())]
        if self.suffixes:
            parts.insert(0, _files(self.suffixes))
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden")
        if self.linked_back:
            lead = "leads back to itself" if self.linked_back == 1 else "lead back to themselves"
            parts.append(f"{counted(self.linked_back, 'linked folder')} that {lead}")
        if self.unused:
            parts.append(f"not looked at: {first_of(self.unused, _SHOWN)}")
        return ", ".join(parts)


def _files(suffixes: Counter[str]) -> str:
    by_count = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix} {count:,}" for suffix, count in by_count]
    return f"{counted(suffixes.total(), 'file')} ({first_of(named, _SHOWN)})"
