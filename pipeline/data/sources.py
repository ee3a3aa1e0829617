"""Where a dataset comes from: the table of sources behind `data.source`.

A source is a function of the text after its name and a `SourceOptions`; adding one is one function and
one line in `SOURCES`. Nothing is decoded here: samples know how to load themselves.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import fashion_mnist
from pipeline.data.sample import UNLABELLED, Sample, Source
from pipeline.errors import ConfigError, DataError, did_you_mean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a source may need beside its own name.

    Args:
        root: folder for downloads.
        channels: 1 (grey) or 3 (colour), how image files are decoded.

    """

    root: Path
    channels: int = 3


def open_source(name: str, options: SourceOptions) -> Source:
    """Find a dataset by the value of `data.source`.

    Raises:
        ConfigError: the name is none of the table's.
        DataError: the dataset is missing, empty, or not of the expected form.

    """
    kind, _, detail = name.partition(":")
    if kind not in SOURCES:
        hint = did_you_mean(kind, SOURCES)
        raise ConfigError(
            f"data.source is {name!r}; expected fashion-mnist-10k, npz:PATH, folder:PATH or "
            f"torchvision:NAME{hint}"
        )
    source = SOURCES[kind](detail, options)
    for split, samples in (("training", source.train), ("test", source.test)):
        if not samples:
            raise DataError(f"{name}: no {split} images; expected at least one")
    if len(source.classes) < 2:
        raise DataError(f"{name}: {len(source.classes)} class; expected at least two classes to tell apart")
    return source


def _builtin(detail: str, options: SourceOptions) -> Source:
    if detail:
        raise ConfigError(f"data.source is 'fashion-mnist-10k:{detail}'; expected no text after it")
    arrays = fashion_mnist.load_subset()
    train = _array_samples(
        arrays["train_images"], arrays["train_labels"], "train", arrays["train_positions"]
    )
    test = _array_samples(arrays["test_images"], arrays["test_labels"], "test")
    return Source(classes=fashion_mnist.CLASSES, channels=1, train=train, test=test)


def _npz(detail: str, options: SourceOptions) -> Source:
    path = Path(detail)
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _NPZ_KEYS if key not in archive]
            if missing:
                raise DataError(
                    f"{path}: has the arrays {sorted(archive)}; expected {', '.join(_NPZ_KEYS)}; "
                    f"add {', '.join(missing)}"
                )
            arrays = {key: archive[key] for key in _NPZ_KEYS}
            names = archive.get("classes", None)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an .npz; correct data.source") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz ({error}); write it again") from None
    for split in ("train", "test"):
        _check_arrays(path, split, arrays[f"{split}_images"], arrays[f"{split}_labels"])
    train_images, test_images = arrays["train_images"], arrays["test_images"]
    if _channels(train_images) != _channels(test_images):
        raise DataError(
            f"{path}: train_images {train_images.shape} and test_images {test_images.shape} differ in "
            "channels; expected the same"
        )
    top = 1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max()))
    classes = tuple(map(str, range(top))) if names is None else tuple(map(str, names))
    if top > len(classes):
        raise DataError(
            f"{path}: label {top - 1} is out of range; expected -1 to {len(classes) - 1}, since "
            f"'classes' has {len(classes)} names; correct the labels or the names"
        )
    return Source(
        classes=classes,
        channels=_channels(train_images),
        train=_array_samples(train_images, arrays["train_labels"], "train"),
        test=_array_samples(test_images, arrays["test_labels"], "test"),
    )


def _check_arrays(path: Path, split: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or _channels(images) not in (1, 3):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 (N, H, W, C) "
            "with C 1 or 3; convert it"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected integers "
            f"({len(images)},), one an image; convert it"
        )
    if not images.size:
        raise DataError(f"{path}: {split}_images is empty {images.shape}; expected images")
    lowest = int(labels.min())
    if lowest < UNLABELLED:
        row = int(np.argmin(labels))
        raise DataError(
            f"{path}: {split}_labels[{row}] is {lowest}; expected 0 or more, or -1 for unlabelled"
        )


def _channels(images: NDArray[Any]) -> int:
    return int(images.shape[3]) if images.ndim == 4 else 1


def _array_samples(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    split: str,
    positions: NDArray[Any] | None = None,
) -> list[Sample]:
    images = images if images.ndim == 4 else images[..., None]
    names = range(len(images)) if positions is None else positions.tolist()
    return [
        Sample(f"{split}/{name}", int(label), lambda row=row: images[row])  # type: ignore[misc]
        for row, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def _folder(detail: str, options: SourceOptions) -> Source:
    root = Path(detail)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected PATH/train/CLASS/* and PATH/test/CLASS/*; correct "
            "data.source"
        )
    held_out = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:5]
        raise DataError(
            f"{root}: has the folders {found}; expected train/CLASS/* and test/CLASS/* (or "
            "val/CLASS/*); move the classes into train/ and some images of each into test/"
        )
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
    return Source(
        classes=classes,
        channels=options.channels,
        train=_file_samples(root, "train", classes, options.channels),
        test=_file_samples(root, held_out, classes, options.channels),
    )


def _file_samples(root: Path, split: str, classes: Sequence[str], channels: int) -> list[Sample]:
    samples = []
    for folder in sorted(entry for entry in (root / split).iterdir() if entry.is_dir()):
        if folder.name not in classes:
            raise DataError(
                f"{folder}: a class that {root / 'train'} does not have ({len(classes)} classes); "
                "expected the same class folders; rename or remove it"
            )
        label = classes.index(folder.name)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        for path in files:
            name = path.relative_to(root).as_posix()
            samples.append(Sample(name, label, _decoder(path, channels)))
    if not samples:
        raise DataError(
            f"{root / split}: no image files in class folders; expected "
            f"{split}/CLASS/*{{{','.join(IMAGE_SUFFIXES)}}}"
        )
    return samples


def _decoder(path: Path, channels: int) -> Callable[[], NDArray[np.uint8]]:
    def load() -> NDArray[np.uint8]:
        from torchvision.io import ImageReadMode, decode_image

        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        try:
            image = decode_image(str(path), mode, apply_exif_orientation=True)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: not a readable image ({path.stat().st_size} bytes: {reason}); expected "
                "JPEG, PNG, WebP or GIF; replace or remove the file"
            ) from None
        pixels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
        return pixels

    return load


def _torchvision(detail: str, options: SourceOptions) -> Source:
    import torchvision.datasets as datasets

    factory = getattr(datasets, detail, None)
    if detail not in datasets.__all__ or factory is None:
        hint = did_you_mean(detail, datasets.__all__)
        raise ConfigError(
            f"data.source names torchvision dataset {detail!r}; expected a class of "
            f"torchvision.datasets{hint}"
        )
    try:
        parts = [_torchvision_split(factory, options.root, name) for name in ("train", "test")]
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"torchvision dataset {detail} in {options.root}: {reason}; expected to find or download "
            "it there; put its files into data.root or use npz: or folder:"
        ) from None
    first = np.asarray(parts[0][0][0])
    channels = 1 if first.ndim == 2 else 3
    train, test = (
        [
            Sample(f"{name}/{row}", int(part[row][1]), _indexed(part, row, channels))
            for row in range(len(part))
        ]
        for name, part in zip(("train", "test"), parts, strict=True)
    )
    names = getattr(parts[0], "classes", None)
    count = 1 + max(sample.label for sample in train)
    classes = tuple(map(str, names if names is not None else range(count)))
    return Source(classes=classes, channels=channels, train=train, test=test)


def _torchvision_split(factory: Any, root: Path, name: str) -> Any:
    """Open one split of a torchvision dataset: some say train=True, others split="train"."""
    import inspect

    accepted = inspect.signature(factory).parameters
    which: Mapping[str, Any] = {"train": name == "train"} if "train" in accepted else {"split": name}
    download = {"download": True} if "download" in accepted else {}
    return factory(root=str(root), **which, **download)


def _indexed(dataset: Any, row: int, channels: int) -> Callable[[], NDArray[np.uint8]]:
    def load() -> NDArray[np.uint8]:
        image = dataset[row][0].convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(image, np.uint8)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return load


SOURCES: Mapping[str, Callable[[str, SourceOptions], Source]] = {
    "fashion-mnist-10k": _builtin,
    "npz": _npz,
    "folder": _folder,
    "torchvision": _torchvision,
}
