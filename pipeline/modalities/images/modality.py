"""The modality `images`: connects its sources, views, rendering and model families to the library."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.modalities.images.augmentations import trust_augmentations
from pipeline.modalities.images.decoding import ImageFile, header_size, stored_size
from pipeline.modalities.images.encoded import open_encoded
from pipeline.modalities.images.form import ImageForm, ImagesDescribed, ImageSource
from pipeline.modalities.images.intake import ImageIntake
from pipeline.modalities.images.models.cifar import Literature
from pipeline.modalities.images.models.timm import Timm
from pipeline.modalities.images.models.torchvision import Torchvision
from pipeline.modalities.images.options import ImageOptions
from pipeline.modalities.images.pictures import open_pictures
from pipeline.modalities.images.preprocessing import GivenPreprocessing, Preprocessing
from pipeline.modalities.images.sources import open_source
from pipeline.modalities.images.sources.recognise import recognise
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.modality import Modality, Recognised
from pipeline.modalities.picture import Picture
from pipeline.samples.description import IMAGES as IMAGES_NAME
from pipeline.samples.index import Form
from pipeline.samples.packed import Split, open_packed
from pipeline.samples.samples import Sample


class Images(Modality):
    """Pixels (H, W, C) uint8, 1 or 3 channels."""

    name = IMAGES_NAME
    families = (Literature(), Torchvision(), Timm())
    options_type = ImageOptions
    views_type = ViewSpec
    preprocessing_type = GivenPreprocessing

    def open_source(self, source: str, options: ImageOptions) -> ImageSource:
        """Find a dataset of images; see `sources`."""
        return open_source(source, options)

    def recognise(self, path: Path, name: str) -> Recognised | None:
        """Return how to read tars or tables of images; class folders are not recognised here."""
        return recognise(path, name)

    def intake(self, source: ImageSource, folder: Path, options: ImageOptions) -> ImageIntake:
        """Return the reader of images for `pipeline prepare`."""
        return ImageIntake(source, folder, options)

    def described(self, plain: Mapping[str, Any]) -> tuple[ImageForm, dict[str, Any]]:
        """Return the images' form, and mean and standard deviation of the training split."""
        described = ImagesDescribed.parse(plain)
        return described.form, described.statistics

    def open_split(self, folder: Path, name: str, form: ImageForm) -> Split:
        """Open one split, packed as pixels or kept as files."""
        return open_packed(folder, name, form) if form.packs else open_encoded(folder, name, form)

    def trust(self, code: Iterable[str]) -> None:
        """Let headers name augmentations of this code."""
        trust_augmentations(code)

    def open_files(self, folder: Path, preprocessing: Preprocessing, count: int) -> Split:
        """Decode some image files, evenly spread over a folder, in the model's number of channels."""
        return open_pictures(folder, preprocessing.channels, count)

    def extents(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Return stored heights and widths (n, 2); 0 if a header has none."""
        sizes = [_stored_size(sample) for sample in samples]
        return np.array([size or (0, 0) for size in sizes], np.int64).reshape(-1, 2)

    def picture(
        self,
        shown: NDArray[np.integer[Any]],
        plain: NDArray[np.integer[Any]] | None = None,
        *,
        form: Form | None = None,
    ) -> Picture:
        """Return an image (S, S, C) uint8, grey or RGB, as a lossless picture."""
        buffer = io.BytesIO()
        image = shown[..., 0] if shown.shape[2] == 1 else shown
        PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return Picture(uri, len(shown))

    def views(self, plain: Mapping[str, Any]) -> ViewSpec:
        """Return the views described by a canonical form."""
        return ViewSpec.from_canonical(plain)

    def preprocessing(self, plain: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing described by plain values."""
        return Preprocessing.parse(plain)

    def fresh_preprocessing(
        self, samples: Split, known: Mapping[str, Any], *, size: int | None, channels: int | None
    ) -> Preprocessing:
        """Return the preprocessing of a model without weights: the dataset's mean and deviation."""
        channels = channels or samples.form.unit[-1]
        return Preprocessing(
            size=size or _common_side(samples),
            mean=_as_channels(known["mean"], channels),
            std=_as_channels(known["std"], channels),
        )


def _stored_size(sample: Sample) -> tuple[int, int] | None:
    if isinstance(sample.load, ImageFile) and sample.load.content is not None:
        with suppress(DataError):
            return stored_size(sample.load.read())
    return header_size(Path(sample.file)) if sample.file else None


def _as_channels(moments: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return per-channel moments as seen by a network with one or three input channels."""
    if len(moments) == channels:
        return tuple(moments)
    return (statistics.mean(moments),) * channels


def _common_side(samples: Split) -> int:
    shapes = samples.shapes
    if (shapes != shapes[0, 0]).any():
        low, high = shapes.min(0).tolist(), shapes.max(0).tolist()
        raise DataError(
            f"the images are {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels, but data.image_size is not "
            "set; set it to the side of the models' square input, e.g. 64"
        )
    return int(shapes[0, 0])


IMAGES = Images()
