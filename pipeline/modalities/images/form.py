"""Images as found in a source, as kept in prepared data, and as described in dataset.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from pipeline.core.hashing import canonical_json
from pipeline.places.addresses import is_address
from pipeline.places.folder import Root
from pipeline.places.objects import ObjectPlace, is_object_address
from pipeline.samples.containers import Container, ContainerKind
from pipeline.samples.index import Form
from pipeline.samples.samples import NO_DECODER, Source

Keep = Literal["pixels", "encoded"]
_Moment = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource(Source):
    """A dataset of images, as found.

    Args:
        channels: channels of every decoded image, 1 or 3.
        root: folder that names are relative to, if every sample is an image file; else None.
        container: the larger files with the images, if every sample is inside one; else None.
    """

    channels: int
    root: Path | None = None
    container: Container | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contained:
    """The larger files with images that stay encoded; see `Container`, whose root is the form's.

    Args:
        kind: of the files.
        parts: names of the files.
        column: with the images, in tables.
        objects: size in bytes and tag of each file in a bucket; () in a folder.
    """

    kind: ContainerKind
    parts: tuple[str, ...]
    column: str = ""
    objects: tuple[tuple[Annotated[int, pydantic.Field(ge=0)], str], ...] = ()

    @classmethod
    def of(cls, container: Container) -> Contained:
        """Describe a container."""
        return cls(
            kind=container.kind, parts=container.parts, column=container.column, objects=container.objects
        )

    def at(self, root: Root) -> Container:
        """Return the container in a folder or bucket."""
        return Container(
            kind=self.kind, root=root, parts=self.parts, column=self.column, objects=self.objects
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        objects = {"objects": [list(one) for one in self.objects]} if self.objects else {}
        return {"kind": self.kind, "parts": list(self.parts), "column": self.column, **objects}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageForm(Form):
    """How prepared images (H, W, C) uint8 are kept; made by `image_form`.

    Args:
        keep: pixels, packed once, or encoded, files that are decoded on use.
        short_side: largest shorter side in pixels; larger images are shrunk to it. None keeps all sizes.
        root: folder that the files' names are relative to, or its address in a bucket; a relative root is
            relative to the folder of the prepared dataset. None for pixels.
        contained: the larger files that images stay in, below `root`; None for files of their own.
    """

    keep: Keep = "pixels"
    short_side: int | None = None
    root: str | None = None
    contained: Contained | None = None

    noun = "image"
    suffix = "pixels"
    longest = 1 << 20

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return self.unit[0]

    @property
    def packs(self) -> bool:
        """Whether images are packed as pixels; if not, their files stay in place."""
        return self.keep == "pixels"

    def to_dict(self) -> dict[str, Any]:
        """Return the form as plain values, for dataset.json."""
        kept = {"keep": self.keep, "short_side": self.short_side, "root": self.root}
        # Left out, not null: a dataset.json of files has had no such key.
        inside = {} if self.contained is None else {"contained": self.contained.to_dict()}
        return {"channels": self.channels, "decoder": self.decoder, **kept, **inside}


def image_form(
    channels: int,
    decoder: str = NO_DECODER,
    *,
    keep: Keep = "pixels",
    short_side: int | None = None,
    root: str | None = None,
    contained: Contained | None = None,
) -> ImageForm:
    """Return the form of images with this number of channels; see `ImageForm`."""
    return ImageForm(
        dtype="uint8",
        axes=2,
        unit=(channels,),
        decoder=decoder,
        keep=keep,
        short_side=short_side,
        root=root,
        contained=contained,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesDescribed:
    """The part of dataset.json about images.

    Args:
        channels, decoder, keep, short_side, root, contained: form of the images.
        mean, std: per channel, of the training split's pixels scaled to 0..1.
    """

    channels: Literal[1, 3]
    decoder: str
    keep: Keep
    short_side: Annotated[int, pydantic.Field(ge=1)] | None
    root: str | None
    mean: tuple[_Moment, ...]
    std: tuple[_Moment, ...]
    contained: Contained | None = None

    def __post_init__(self) -> None:
        relations = {
            f"{self.channels} values of mean": len(self.mean) == self.channels,
            f"{self.channels} values of std, above 0": len(self.std) == self.channels and min(self.std) > 0,
            "a root if and only if images stay encoded": (self.root is not None)
            == (self.keep == "encoded"),
            "no files around packed images": self.contained is None or self.keep == "encoded",
            "sizes and tags of all files if they are in a bucket, and else none": self._has_right_objects,
        }
        broken = next((what for what, holds in relations.items() if not holds), None)
        if broken is not None:
            raise ValueError(f"expected {broken}")

    @property
    def _has_right_objects(self) -> bool:
        if self.contained is None:
            return not is_address(self.root or "")
        if not is_object_address(self.root):
            return not self.contained.objects
        return self.contained.kind == "tar" and len(self.contained.objects) == len(self.contained.parts)

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> ImagesDescribed:
        """Parse the content of a dataset.json.

        Raises:
            pydantic.ValidationError: a value has a wrong type or range, or contradicts another.
        """
        described: ImagesDescribed = _DESCRIBED.validate_json(canonical_json(plain), strict=True)
        return described

    @property
    def form(self) -> ImageForm:
        """The form of the images."""
        kept = {name: getattr(self, name) for name in ("keep", "short_side", "root", "contained")}
        return image_form(self.channels, self.decoder, **kept)

    @property
    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation."""
        return {"mean": self.mean, "std": self.std}


_DESCRIBED = pydantic.TypeAdapter(ImagesDescribed)


def relative_root(root: Root, folder: Path) -> str:
    """Return a root relative to a prepared dataset in `folder`, unless it is absolute: projects move."""
    is_relative = isinstance(root, Path) and not root.is_absolute()
    return os.path.relpath(str(root), folder) if is_relative else str(root)


def find_root(root: str, folder: Path) -> Root:
    """Return the place of an address, or the absolute folder of a relative root.

    Absolute, since a program may change its working folder.

    Raises:
        StoreError: the place is in a bucket, and the library obstore is not installed.
    """
    # Not resolved: folders on the path may be links.
    return ObjectPlace.open(root) if is_object_address(root) else Path(os.path.abspath(folder / root))
