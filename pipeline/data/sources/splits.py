"""Which folder or array is which split, by the names that people give them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.core.errors import DataError

TRAIN, TEST = "train", "test"
VALIDATION = ("val", "valid", "validation")
_MEANT = {
    **dict.fromkeys(("training",), TRAIN),
    **dict.fromkeys(("testing", "tests"), TEST),
    **dict.fromkeys(("validate", "vali"), "val"),
}


@dataclass(frozen=True, slots=True)
class SplitNames:
    """Names of the splits of a source.

    Args:
        test: what is tested on; without a test split the validation split is.
        validation: what chooses epochs; None where it is drawn from the training images.
    """

    test: str
    validation: str | None


def find_splits(where: object, names: Collection[str]) -> SplitNames | None:
    """Tell the splits by their names; None where one to train on or one to test on is missing.

    Args:
        where: the source, for errors.
        names: of its folders.

    Raises:
        DataError: a name that is nearly a split's, or two for one split.
    """
    known = (TRAIN, TEST, *VALIDATION)
    for name in sorted(names):
        meant = _MEANT.get(name.lower(), name.lower())
        if meant in known and name != meant:
            raise DataError(
                f"{where}: has {name!r}; expected the name {meant!r}; rename {name!r} to {meant!r}, or "
                "move it away"
            )
    found = [name for name in VALIDATION if name in names]
    if len(found) > 1:
        raise DataError(
            f"{where}: has {' and '.join(map(repr, found))}; expected one validation split; merge them, or "
            "move one away"
        )
    validation = found[0] if found else None
    if TRAIN not in names or (TEST not in names and validation is None):
        return None
    return SplitNames(TEST, validation) if TEST in names else SplitNames(str(validation), None)
