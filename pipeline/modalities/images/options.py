"""The keys of `data` in params.yaml that belong to images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.core.errors import ConfigError
from pipeline.modalities.images.damage import OnDamage
from pipeline.modalities.images.decoding import MAX_PIXELS
from pipeline.modalities.images.form import Keep
from pipeline.modalities.modality import DataOptions
from pipeline.samples.description import Description, same_place

# Options that change the content of prepared data. The rest refuse images, so data prepared less strictly
# may hold some that they would refuse.
DECISIVE = ("root", "channels", "short_side", "keep")
REFUSING = ("max_pixels", "damaged")
# Options of tars and tables; older files have none of them, so unset ones are not recorded.
PARTS = ("image", "label", "id", "test_files", "validation_files", "unlabelled_files")
# Sources of encoded image files, by the word before the colon; and the `PARTS` that sources do not use.
FILES = ("folder", "wds", "parquet", "hf", "csv")
_UNUSED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("folder", "npz", "torchvision", "fashion-mnist-10k"), PARTS),
    "wds": ("id",),
    "hf": ("test_files", "validation_files", "unlabelled_files"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions(DataOptions):
    """Decoding, storage and input size of images.

    Args:
        root: folder for downloads by torchvision.
        image_size: side in pixels of the square input of models trained here, 8 to 1024; None takes that
            of the images.
        channels: channels of decoded image files, 1 (grey) or 3 (colour); arrays keep their own number.
        short_side: largest shorter side in pixels, 16 to 4096; larger images are shrunk to it. None keeps
            all sizes.
        keep: pixels (decode once and pack), or encoded (leave the files in place and decode on use).
        max_pixels: image files with more pixels are refused before decoding, at least 1.
        damaged: JPEG files with corrupt data: warn (read and list them) or refuse.
        image: column of the image or of its path in a table, or suffixes of it in a tar, e.g. `jpg;png`;
            None takes the usual names.
        label: column of the label, or columns of several, `cat,dog`; in a tar the suffix of its member, or
            `json:KEY` for a value of a JSON member; `none` for samples without labels. None takes
            `label`, or `cls` in a tar.
        id: column with a unique name of each sample; None names samples by path or content.
        test_files, validation_files, unlabelled_files: patterns of the tars or tables of further splits.
    """

    root: str = "data/raw"
    image_size: int | None = None
    channels: Literal[1, 3] = 3
    short_side: int | None = None
    keep: Keep = "pixels"
    max_pixels: int = MAX_PIXELS
    damaged: OnDamage = "warn"
    image: str | None = None
    label: str | None = None
    id: str | None = None
    test_files: str | None = None
    validation_files: str | None = None
    unlabelled_files: str | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise ConfigError(f"image_size is {self.image_size}; expected 8 to 1024 pixels")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}; expected at least 1")
        if self.short_side is not None and not 16 <= self.short_side <= 4096:
            raise ConfigError(f"short_side is {self.short_side}; expected 16 to 4096 pixels, or null")

    @property
    def size(self) -> int | None:
        """Extent of the input of models trained here."""
        return self.image_size

    def require_source(self, source: str) -> None:
        """Refuse a source that cannot be kept in the given way.

        Raises:
            ConfigError: samples are not files, but are to stay encoded.
        """
        kind = _kind(source)
        if self.keep == "encoded" and kind not in FILES:
            raise ConfigError(
                f"keep is encoded, but source is {source!r}; only {', '.join(FILES)} sources can leave "
                "files in place; set keep: pixels"
            )
        if self.keep == "encoded" and kind == "csv" and self.id is not None:
            raise ConfigError(
                f"keep is encoded, and id is {self.id!r}; expected images named by their paths in a csv: "
                "source that stay in place; leave id out, or set keep: pixels"
            )
        unused = _UNUSED.get(kind, ())
        given = next((name for name in unused if getattr(self, name) is not None), None)
        if given is not None:
            raise ConfigError(
                f"{given} is {getattr(self, given)!r}, but source is {source!r}, which does not use it; "
                "expected it with other kinds of sources; remove it"
            )

    @property
    def omitted(self) -> tuple[str, ...]:
        """Names of the unset options of tars and tables."""
        return tuple(name for name in PARTS if getattr(self, name) is None)

    def for_models(self) -> dict[str, Any]:
        """Return the options that shape networks and leave prepared data unchanged."""
        return {"image_size": self.image_size}

    def asked(self) -> dict[str, Any]:
        """Return the options to compare with prepared data: they change or refuse parts of its content."""
        return {name: getattr(self, name) for name in (*DECISIVE, *REFUSING, *PARTS)}

    @property
    def refusing(self) -> tuple[str, ...]:
        """Names of the options that only refuse images."""
        return REFUSING

    def known(self, description: Description) -> dict[str, Any]:
        """Return the options recorded in a prepared dataset.

        Older versions recorded only the form. Arrays keep their own number of channels.
        """
        known = {name: description.own[name] for name in ("keep", "short_side")}
        if _kind(description.source) in FILES:
            known["channels"] = description.own["channels"]
        if description.made_with:
            known |= dict.fromkeys(PARTS)
        known |= description.made_with
        if description.remarks.get("damaged"):
            known["damaged"] = "warn"
        elif known["keep"] == "pixels" and "damaged" in description.made_with:
            # All images were decoded and none is damaged, so `refuse` would accept them.
            known["damaged"] = "none"
        return known

    def differs(self, name: str, was: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether an option asks for different data than the prepared data."""
        there, here, source = was[name], asked[name], str(was["source"])
        if name == "root":
            # Only torchvision's downloads depend on the root.
            return source.startswith("torchvision:") and not same_place(str(there), str(here))
        # Only image files have a bound. Images within a bound are within a larger one, too.
        if name == "max_pixels":
            return bool(here < there) and _kind(source) in (*FILES, "torchvision")
        if name == "damaged":
            return bool(here == "refuse" and there == "warn")
        return bool(there != here)


def _kind(source: str) -> str:
    """Return the word before the colon of a source."""
    return source.partition(":")[0]
