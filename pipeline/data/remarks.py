"""Something odd about images that were read nevertheless, to be told once for all of them.

A remark is a bit in a sample's record, so that an interrupted preparation tells the same as another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import counted, first_of
from pipeline.core.files import write_bytes
from pipeline.core.progress import note
from pipeline.data.decoding import is_deep
from pipeline.samples.draft import require_none
from pipeline.samples.samples import Sample

DAMAGED, NARROW = 1, 2
# Where a quarter of 16 bits is not reached, nothing is brighter than this in 8.
_NARROW_LEVELS = 64
DAMAGED_LIST = "damaged.txt"

OnDamage = Literal["warn", "refuse"]
Bits = NDArray[np.uint8]  # (N,), a sample each


@dataclass(frozen=True, eq=False, slots=True)
class Remarks:
    """What is odd about the images of the splits of a dataset.

    Args:
        splits: name -> its samples, and their remarks.
    """

    splits: Mapping[str, tuple[Sequence[Sample], Bits]]

    def files(self, remark: int) -> list[str]:
        """Return which files, or samples that are none, a remark is made of."""
        found = []
        for samples, bits in self.splits.values():
            found += [samples[row] for row in np.flatnonzero(bits & remark).tolist()]
        return [sample.file or sample.name for sample in found]

    def to_dict(self) -> dict[str, Any]:
        """Return how many images each remark is made of, without those of none."""
        counts = {"damaged": len(self.files(DAMAGED)), "narrow_range": len(self.files(NARROW))}
        return {name: count for name, count in counts.items() if count}


def remark_on(content: NDArray[np.uint8], pixels: NDArray[np.uint8], *, damaged: bool) -> int:
    """Return the remarks on a file that was decoded.

    Args:
        content: its bytes.
        pixels: (H, W, C), decoded.
        damaged: whether the decoder reported damage.
    """
    narrow = is_deep(content) and int(pixels.max(initial=0)) < _NARROW_LEVELS
    return DAMAGED * damaged + NARROW * narrow


def tell_remarks(remarks: Remarks, folder: Path) -> None:
    """Tell remarks on stderr, a line each; list damaged files in the folder of the prepared dataset."""
    narrow, damaged, path = remarks.files(NARROW), remarks.files(DAMAGED), folder / DAMAGED_LIST
    if narrow:
        use, are = ("uses", "is") if len(narrow) == 1 else ("use", "are")
        note(
            f"narrow range: {counted(len(narrow), 'image')} of 16 bits {use} less than a quarter of their "
            f"range and {are} nearly black: {first_of(narrow)}; stretch it, if that is not meant"
        )
    path.unlink(missing_ok=True)
    if damaged:
        write_bytes(path, "".join(f"{file}\n" for file in damaged).encode(errors="replace"))
        have = "has" if len(damaged) == 1 else "have"
        note(
            f"damaged: {counted(len(damaged), 'image')} {have} corrupt JPEG data and may be wrong in part: "
            f"{first_of(damaged)}; all are listed in {path}; replace or remove them, or set "
            "data.damaged to refuse"
        )


def refuse_damaged(remarks: Remarks, count: int, state: Path) -> None:
    """Refuse to finish with damaged files.

    Args:
        remarks: on the images.
        count: of all images.
        state: folder of the unfinished preparation, where the list goes.

    Raises:
        DataError: naming the first of them.
    """
    lines = [
        f"{file}: a damaged image (its JPEG data is corrupt); expected a whole one, as data.damaged is "
        "refuse; replace or remove the file"
        for file in remarks.files(DAMAGED)
    ]
    require_none(lines, f"of {count:,} images are damaged", state)
