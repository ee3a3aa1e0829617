"""Images as they are found, as they are kept, and as dataset.json describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from pipeline.core.hashing import canonical_json
from pipeline.samples.index import Form
from pipeline.samples.samples import NO_DECODER, Source

Keep = Literal["pixels", "encoded"]
_Moment = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource(Source):
    """A dataset of images as it is found.

    Args:
        channels: 1 or 3, of every decoded image.
        root: where each sample is an image file, the folder that its name is relative to.
    """

    channels: int
    root: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageForm(Form):
    """How images (H, W, C) uint8 are kept; made by `image_form`.

    Args:
        keep: pixels, packed once, or encoded, files that are decoded at use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None leaves all alone.
        root: of files, the folder that names are relative to; where it is relative itself, to the folder
            of the prepared dataset. None for pixels.
    """

    keep: Keep = "pixels"
    short_side: int | None = None
    root: str | None = None

    noun = "image"
    suffix = "pixels"
    longest = 1 << 20

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.unit[0]

    @property
    def packs(self) -> bool:
        """Whether images are packed as pixels; otherwise their files stay."""
        return self.keep == "pixels"

    def to_dict(self) -> dict[str, Any]:
        """Return the form as plain values, as dataset.json has them."""
        kept = {"keep": self.keep, "short_side": self.short_side, "root": self.root}
        return {"channels": self.channels, "decoder": self.decoder, **kept}


def image_form(
    channels: int,
    decoder: str = NO_DECODER,
    *,
    keep: Keep = "pixels",
    short_side: int | None = None,
    root: str | None = None,
) -> ImageForm:
    """Return the form of images of so many channels; see `ImageForm`."""
    return ImageForm(
        dtype="uint8",
        axes=2,
        unit=(channels,),
        decoder=decoder,
        keep=keep,
        short_side=short_side,
        root=root,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesDescribed:
    """What dataset.json says of images.

    Args:
        channels, decoder, keep, short_side, root: their form.
        mean, std: per channel, of the training split's pixels scaled to 0..1.
    """

    channels: Literal[1, 3]
    decoder: str
    keep: Keep
    short_side: Annotated[int, pydantic.Field(ge=1)] | None
    root: str | None
    mean: tuple[_Moment, ...]
    std: tuple[_Moment, ...]

    def __post_init__(self) -> None:
        relations = {
            f"{self.channels} of mean": len(self.mean) == self.channels,
            f"{self.channels} of std, above 0": len(self.std) == self.channels and min(self.std) > 0,
            "a root where images are kept encoded": (self.root is not None) == (self.keep == "encoded"),
        }
        broken = next((what for what, holds in relations.items() if not holds), None)
        if broken is not None:
            raise ValueError(f"expected {broken}")

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> ImagesDescribed:
        """Return what the content of a dataset.json says of images.

        Raises:
            pydantic.ValidationError: types, ranges or relations of other values.
        """
        described: ImagesDescribed = _DESCRIBED.validate_json(canonical_json(plain), strict=True)
        return described

    @property
    def form(self) -> ImageForm:
        """The form of the images."""
        plain = asdict(self)
        return image_form(**{name: plain[name] for name in plain if name not in ("mean", "std")})

    @property
    def statistics(self) -> dict[str, Any]:
        """Mean and deviation."""
        return {"mean": self.mean, "std": self.std}


_DESCRIBED = pydantic.TypeAdapter(ImagesDescribed)


def relative_root(root: Path, folder: Path) -> str:
    """Return the root of files as a prepared dataset in `folder` names it: the project may be moved."""
    return str(root) if root.is_absolute() else os.path.relpath(root, folder)


def find_root(root: str, folder: Path) -> Path:
    """Return the folder that `relative_root` named, absolute: a program may change its own folder."""
    # Not resolved: folders on the way may be links.
    return Path(os.path.abspath(folder / root))
