"""Specs of views: ranges, contradictions, canonical form and digest."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.core.errors import ConfigError, MismatchError
from pipeline.modalities.images.augmentations import (
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
from pipeline.modalities.images.spec import AUGMENTATIONS, SEMANTICS, ViewSpec
from tests.pipeline.modalities.images.examples import ALTERNATIVES, EVERYTHING, EXAMPLES

SPECS = (
    ViewSpec(),
    ViewSpec(seed=1),
    ViewSpec(flip="random"),
    ViewSpec(flip="alternating"),
    ViewSpec(pad_crop=PadCrop()),
    ViewSpec(pad_crop=PadCrop(padding=2)),
    ViewSpec(random_resized_crop=RandomResizedCrop()),
    ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1.0))),
    ViewSpec(random_resized_crop=RandomResizedCrop(ratio=(1.0, 1.0))),
)


@pytest.mark.parametrize("padding", [-1, 0, 65])
def test_padding_out_of_range_is_refused(padding):
    with pytest.raises(ConfigError, match=rf"pad_crop.padding is {padding}; expected 1 to 64"):
        PadCrop(padding=padding)


@pytest.mark.parametrize("padding", [1, 64])
def test_padding_at_its_limits_is_accepted(padding):
    assert PadCrop(padding=padding).padding == padding


@pytest.mark.parametrize("scale", [(0, 1), (-0.1, 1), (0.5, 0.4), (0.5, 1.1), (math.nan, 1)])
def test_scale_out_of_range_is_refused(scale):
    with pytest.raises(ConfigError, match=r"random_resized_crop.scale is \["):
        RandomResizedCrop(scale=scale)


@pytest.mark.parametrize("ratio", [(0, 1), (-1, 1), (1.3, 0.7), (1, math.inf), (1, math.nan)])
def test_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"random_resized_crop.ratio is \["):
        RandomResizedCrop(ratio=ratio)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match=r"views.seed is .* expected 0 to 2\^64 - 1"):
        ViewSpec(seed=seed)


def test_two_ways_to_crop_are_a_contradiction():
    with pytest.raises(ConfigError, match="both pad_crop and random_resized_crop"):
        ViewSpec(pad_crop=PadCrop(), random_resized_crop=RandomResizedCrop())


def test_canonical_form_is_plain_json_with_the_semantics_of_rendering():
    for spec in SPECS:
        canonical = spec.canonical()
        assert canonical["semantics"] == SEMANTICS
        json.dumps(canonical, allow_nan=False)


def test_every_field_is_in_the_digest():
    assert len({spec.digest() for spec in SPECS}) == len(SPECS)


def test_digest_is_that_of_older_stores():
    """A store made before a change must be found again: these two change only with SEMANTICS."""
    spec = ViewSpec(seed=1, pad_crop=PadCrop(padding=2), flip="random")
    assert spec.digest() == "d70e6e3327cf1af99ec1236660f3b3c1379fe0e12a4c72ce423376effcdd4e9a"
    crop = ViewSpec(seed=1, random_resized_crop=RandomResizedCrop(scale=(0.25, 1.0)))
    assert crop.digest() == "758abde8c4d8b7e9d5fb805fdbb05efd958a596ae89a2b1c3f6518d9ee847187"


def test_equal_specs_have_equal_digests():
    floats = ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1.0), ratio=(1.0, 2.0)))
    integers = ViewSpec(random_resized_crop=RandomResizedCrop(scale=(0.5, 1), ratio=(1, 2)))
    assert floats == integers
    assert floats.digest() == integers.digest()


# Every augmentation.

NAN, INFINITY = math.nan, math.inf
# What is refused, and what the message says was expected.
REFUSED = [
    (RandAugment, "num_ops", (0, 9), "1 to 8 operations"),
    (RandAugment, "magnitude", (-1, 31), "0 to 30"),
    (TrivialAugment, "num_magnitude_bins", (1, 257), "2 to 256"),
    (RandomAffine, "degrees", (-1, 181, NAN), "0 to 180"),
    (RandomAffine, "translate", ((-0.1, 0), (0, 1.1), (NAN, 0)), "[x, y], each 0 to 1"),
    (
        *(RandomAffine, "scale", ((0.09, 1), (1.1, 1.0), (1, 10.1), (NAN, 1))),
        "[low, high] with 0.1 <= low <= high <= 10",
    ),
    (RandomAffine, "shear", ((-1, 0), (0, 61), (0, NAN)), "[x, y], each 0 to 60 degrees"),
    *((ColorJitter, name, (-0.1, 8.1, NAN), "0 to 8") for name in ("brightness", "contrast", "saturation")),
    (ColorJitter, "hue", (-0.1, 0.51, NAN), "0 to 0.5"),
    (Posterize, "bits", (-1, 9), "0 to 8"),
    (Solarize, "threshold", (-1, 256), "0 to 255"),
    (Sharpness, "factor", (-0.1, 9.1, NAN), "0 to 9"),
    (
        *(RandomErasing, "scale", ((0, 0.5), (0.5, 0.4), (0.5, 1.1), (NAN, 1))),
        "[low, high] with 0 < low <= high <= 1",
    ),
    (
        *(RandomErasing, "ratio", ((0, 1), (2, 1), (1, 101), (1, INFINITY))),
        "[low, high] with 0 < low <= high <= 100",
    ),
    (RandomErasing, "value", (-1, 256), "0 to 255"),
    *((kind, "alpha", (0, 0.04, 8.1, INFINITY, NAN), "0.05 to 8") for kind in (Mixup, Cutmix)),
    *(
        (kind, "probability", (0, -0.1, 1.1, NAN), "more than 0 and at most 1")
        for kind in AUGMENTATIONS.values()
        if "probability" in kind.__dataclass_fields__
    ),
]
# The ends of every range, and no settings at all where that has an effect.
ACCEPTED = [
    *(RandAugment(num_ops=1, magnitude=0), RandAugment(num_ops=8, magnitude=30)),
    *(TrivialAugment(num_magnitude_bins=2), TrivialAugment(num_magnitude_bins=256)),
    *(RandomAffine(degrees=180), RandomAffine(translate=(0, 1)), RandomAffine(shear=(60, 0))),
    *(
        RandomAffine(scale=(0.1, 10)),
        RandomAffine(scale=(0.5, 0.5)),
        RandomAffine(degrees=1, probability=0.1),
    ),
    *(ColorJitter(brightness=8), ColorJitter(contrast=8), ColorJitter(saturation=8), ColorJitter(hue=0.5)),
    *(
        ColorJitter(hue=0.1, probability=0.1),
        Posterize(bits=0),
        Posterize(bits=8),
        Posterize(probability=0.1),
    ),
    *(Solarize(threshold=0), Solarize(threshold=255), Solarize(probability=1), Sharpness(probability=0.1)),
    *(
        Sharpness(factor=0),
        Sharpness(factor=9),
        RandomErasing(scale=(1, 1)),
        RandomErasing(ratio=(0.01, 100)),
    ),
    *(RandomErasing(value=255), RandomErasing(probability=1), Mixup(alpha=0.05), Mixup(alpha=8)),
    *(Cutmix(alpha=0.05), Cutmix(alpha=8), Mixup(probability=0.5), Cutmix(probability=0.5)),
    *(Grayscale(probability=1), Autocontrast(probability=1), Equalize(probability=1)),
    *(kind() for kind in AUGMENTATIONS.values() if kind not in (RandomAffine, ColorJitter)),
]


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [(kind, field, value, expected) for kind, field, values, expected in REFUSED for value in values],
)
def test_a_value_out_of_range_is_refused_with_what_was_found_and_expected(kind, field, value, expected):
    with pytest.raises(ConfigError) as refusal:
        kind(**{field: value})
    found = list(value) if isinstance(value, tuple) else value
    assert str(refusal.value) == f"{kind.name}.{field} is {found}; expected {expected}"


@pytest.mark.parametrize("kind", [RandomAffine, ColorJitter])
def test_an_augmentation_without_effect_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"^{kind.name} is without effect; expected .*; set one$"):
        kind(probability=0.5)


def test_every_augmentation_is_a_field_of_a_spec_and_has_an_example():
    specs_own = {"seed", "flip", "own"}
    assert set(AUGMENTATIONS) == set(ViewSpec.__dataclass_fields__) - specs_own == set(EXAMPLES)
    assert all(kind.name == name for name, kind in AUGMENTATIONS.items())


@pytest.mark.parametrize(("one", "other"), ALTERNATIVES.items())
def test_alternatives_are_a_contradiction(one, other):
    given = {name: EXAMPLES[name] for name in (one, other)}
    with pytest.raises(
        ConfigError, match=rf"given both ({one} and {other}|{other} and {one}); .* remove the other"
    ):
        ViewSpec(**given)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1, 1), (0.7, 0.31), (1, 0.01)])
def test_mixing_more_than_all_samples_is_a_contradiction(mixup, cutmix):
    message = (
        rf"given mixup and cutmix with probability {mixup:g} and {cutmix:g}; expected a sum of at most 1"
    )
    with pytest.raises(ConfigError, match=message):
        ViewSpec(mixup=Mixup(probability=mixup), cutmix=Cutmix(probability=cutmix))


def test_mixing_all_samples_is_accepted_whatever_the_two_probabilities():
    for mixup in range(1, 100):
        spec = ViewSpec(
            mixup=Mixup(probability=mixup / 100), cutmix=Cutmix(probability=(100 - mixup) / 100)
        )
        assert spec.mixes


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_spec_mixes_where_it_has_mixup_or_cutmix(name):
    assert ViewSpec(**{name: EXAMPLES[name]}).mixes == (name in ("mixup", "cutmix"))


def _specs() -> list[ViewSpec]:
    """Different specs: each augmentation with its defaults and with every end of its ranges."""
    accepted = dict.fromkeys(ACCEPTED)
    return [
        *SPECS,
        ViewSpec(seed=3, **EVERYTHING),
        *(ViewSpec(seed=2, **{each.name: each}) for each in accepted),
    ]


@pytest.mark.parametrize("spec", _specs())
def test_a_canonical_form_describes_its_spec_also_after_json(spec):
    assert ViewSpec.from_canonical(spec.canonical()) == spec
    again = ViewSpec.from_canonical(json.loads(json.dumps(spec.canonical(), allow_nan=False)))
    assert again == spec
    assert again.digest() == spec.digest()


def test_all_specs_have_digests_of_their_own():
    specs = _specs()
    assert len({spec.digest() for spec in specs}) == len(specs) > 50


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_canonical_form_names_what_is_set(name):
    always = {"semantics", "seed", "flip", "pad_crop", "random_resized_crop"}
    assert set(ViewSpec(**{name: EXAMPLES[name]}).canonical()) == always | {name}


@pytest.mark.parametrize(
    ("integers", "floats"),
    [
        (RandomAffine(degrees=10, scale=(1, 2)), RandomAffine(degrees=10.0, scale=(1.0, 2.0))),
        (ColorJitter(brightness=1), ColorJitter(brightness=1.0)),
        (Sharpness(factor=2, probability=1), Sharpness(factor=2.0, probability=1.0)),
        (RandomErasing(ratio=(1, 2)), RandomErasing(ratio=(1.0, 2.0))),
        (Mixup(alpha=1), Mixup(alpha=1.0)),
        (Cutmix(alpha=1), Cutmix(alpha=1.0)),
        (Grayscale(probability=1), Grayscale(probability=1.0)),
    ],
)
def test_equal_numbers_have_equal_digests(integers, floats):
    one, other = (ViewSpec(**{each.name: each}) for each in (integers, floats))
    assert one.digest() == other.digest()


def test_an_operation_of_another_version_is_refused():
    canonical = {**ViewSpec().canonical(), "random_zoom": {"factor": 2}}
    with pytest.raises(
        MismatchError, match=r"the views have operation random_zoom, .* color_jitter.* new dump"
    ):
        ViewSpec.from_canonical(canonical)


@pytest.mark.parametrize("semantics", [SEMANTICS - 1, SEMANTICS + 1])
def test_other_semantics_of_rendering_are_refused(semantics):
    canonical = {**ViewSpec().canonical(), "semantics": semantics}
    message = f"semantics {semantics} of rendering, but this program supports semantics {SEMANTICS} "
    with pytest.raises(MismatchError, match=message):
        ViewSpec.from_canonical(canonical)


def test_a_setting_of_another_version_is_refused():
    canonical = {**ViewSpec().canonical(), "color_jitter": {"brightness": 0.4, "gamma": 1.0}}
    with pytest.raises(MismatchError, match=r"the views have operation color_jitter.gamma, "):
        ViewSpec.from_canonical(canonical)


def test_a_form_without_semantics_is_refused():
    with pytest.raises(MismatchError, match="semantics None"):
        ViewSpec.from_canonical({"seed": 0})
