"""One strong example of every augmentation, all of them in one spec, and specs that render each."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.modalities.images.augmentations import (
    Augmentation,
    Autocontrast,
    ColorJitter,
    Cutmix,
    Equalize,
    Grayscale,
    Mixup,
    PadCrop,
    Posterize,
    RandAugment,
    RandomAffine,
    RandomErasing,
    RandomResizedCrop,
    Sharpness,
    Solarize,
    TrivialAugment,
)
from pipeline.modalities.images.spec import ViewSpec

EXAMPLES: Mapping[str, Augmentation] = {
    "pad_crop": PadCrop(padding=3),
    "random_resized_crop": RandomResizedCrop(),
    "rand_augment": RandAugment(num_ops=3, magnitude=20),
    "trivial_augment": TrivialAugment(),
    "random_affine": RandomAffine(
        degrees=90, translate=(0.2, 0.1), scale=(0.5, 2), shear=(20, 10), probability=0.8
    ),
    "color_jitter": ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4, probability=0.8),
    "grayscale": Grayscale(probability=0.3),
    "posterize": Posterize(bits=3),
    "solarize": Solarize(threshold=100, probability=0.3),
    "sharpness": Sharpness(factor=4.5),
    "autocontrast": Autocontrast(),
    "equalize": Equalize(probability=0.3),
    "random_erasing": RandomErasing(value=99),
    "mixup": Mixup(alpha=0.4, probability=0.4),
    "cutmix": Cutmix(probability=0.6),
}
# Of each pair, a spec has one.
ALTERNATIVES = {"pad_crop": "random_resized_crop", "trivial_augment": "rand_augment"}
EVERYTHING = {name: example for name, example in EXAMPLES.items() if name not in ALTERNATIVES}
SPECS = {
    **{name: ViewSpec(seed=4, flip="random", **{name: example}) for name, example in EXAMPLES.items()},
    "everything": ViewSpec(seed=4, flip="random", **EVERYTHING),
    "everything else": ViewSpec(
        seed=4,
        flip="alternating",
        **{name: example for name, example in EXAMPLES.items() if name not in ALTERNATIVES.values()},
    ),
}
