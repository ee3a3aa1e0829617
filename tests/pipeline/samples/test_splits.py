"""Train and validation: drawn by each sample's own name."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.samples.samples import Sample
from pipeline.samples.splits import SplitNames, draw_test, find_splits, split_validation

# Of 80 samples at a fifth and seed 0, before any sample was ever spared.
HELD = [4, 7, 14, 15, 16, 17, 18, 19, 24, 26, 35, 36, 38, 40, 42, 44, 48, 54, 57, 61, 71, 73]


def _samples(names, label: int = 0) -> list[Sample]:
    return [Sample(f"train/{name}", label, lambda: None) for name in names]


def _held(samples, fraction=0.2, seed=0) -> set[str]:
    return {sample.name for sample in split_validation(samples, fraction=fraction, seed=seed)[1]}


def test_every_sample_is_on_one_side_in_the_given_order():
    samples = _samples(range(500))
    train, validation = split_validation(samples, fraction=0.3, seed=0)
    position = {sample.name: row for row, sample in enumerate(samples)}
    for part in (train, validation):
        rows = [position[sample.name] for sample in part]
        assert rows == sorted(rows)
    assert len(train) + len(validation) == 500
    assert not {s.name for s in train} & {s.name for s in validation}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_share_is_the_fraction(fraction):
    count = 5000
    spread = (fraction * (1 - fraction) * count) ** 0.5
    assert abs(len(_held(_samples(range(count)), fraction)) - fraction * count) < 4 * spread


def test_adding_and_removing_samples_moves_no_other():
    names = list(range(300))
    before = _held(_samples(names))
    kept = {f"train/{name}" for name in names[10:]}
    after = _held(_samples([*names[10:], "new-a", "new-b"]))
    assert after & kept == before & kept


def test_reordering_samples_moves_none():
    assert _held(_samples(range(299, -1, -1))) == _held(_samples(range(300)))


def test_a_larger_fraction_keeps_who_was_held():
    assert _held(_samples(range(300)), 0.1) < _held(_samples(range(300)), 0.4)


def test_another_seed_is_another_split():
    assert _held(_samples(range(300)), seed=0) != _held(_samples(range(300)), seed=1)


def test_unlabelled_samples_always_train():
    mixed = _samples(range(200)) + _samples(range(200, 400), label=-1)
    held = _held(mixed, fraction=0.9)
    assert held
    assert all(int(name.removeprefix("train/")) < 200 for name in held)


def test_a_fraction_of_zero_holds_nothing():
    samples = _samples(range(5))
    assert split_validation(samples, fraction=0, seed=0) == (samples, [])


def test_a_validation_split_without_samples_is_refused():
    with pytest.raises(
        DataError, match=r"3 of them labelled, with data.validation = 0\.0001 leave 3 for tr"
    ):
        split_validation(_samples(range(3)), fraction=0.0001, seed=0)


def test_no_class_loses_its_last_training_sample(capsys):
    rare, common = _samples(["rare-0", "rare-1"], label=1), _samples(range(300))
    train, validation = split_validation([*common, *rare], fraction=0.9999, seed=0)
    assert sorted(sample.label for sample in train)[-1] == 1
    assert len([sample for sample in train if sample.label == 1]) == 1
    assert {sample.label for sample in validation} == {0, 1}
    assert "last training samples of their classes stay in training: train/" in capsys.readouterr().err


def test_classes_that_keep_training_samples_are_split_as_ever(capsys):
    """What was prepared before stays what it is."""
    samples = _samples(range(40)) + _samples(range(40, 80), label=1)
    held = _held(samples)
    words = {s.name: s for s in samples if s.name in held}
    assert sorted(int(name.removeprefix("train/")) for name in words) == HELD
    assert capsys.readouterr().err == ""


def test_unlabelled_data_alone_cannot_validate():
    with pytest.raises(DataError, match="0 skips validation"):
        split_validation(_samples(range(50), label=-1), fraction=0.5, seed=0)


# The test split of a source that has none.


def _tested(names: list[str]) -> set[str]:
    """Return who is tested on, of names that begin with their class."""
    classes = sorted({name.partition("/")[0] for name in names} - {"unlabelled"})
    known = {name: label for label, name in enumerate(classes)}
    labels = np.array([known.get(name.partition("/")[0], -1) for name in names], np.int64)
    return {name for name, drawn in zip(names, draw_test(names, labels), strict=True) if drawn}


def _class(name: str, count: int) -> list[str]:
    return [f"{name}/{number}.jpg" for number in range(count)]


def test_a_fifth_of_each_class_is_tested_on():
    names = _class("cat", 2000) + _class("dog", 1000)
    tested = _tested(names)
    for name, count in (("cat", 2000), ("dog", 1000)):
        drawn = sum(one.startswith(name) for one in tested)
        assert abs(drawn - 0.2 * count) < 4 * (0.16 * count) ** 0.5


def test_files_that_come_or_go_move_no_other_into_or_out_of_the_test():
    names = _class("cat", 300) + _class("dog", 300)
    before, others = _tested(names), names[10:]
    after = _tested([*others, "cat/new.jpg", "bird/0.jpg", "bird/1.jpg"])
    assert after & set(others) == before & set(others)
    assert _tested(names[::-1]) == before


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_small_class_is_tested_on_one_at_least_and_keeps_one(count):
    for number in range(40):
        drawn = _tested(_class(f"class-{number}", count) + _class("cat", 50))
        of_it = [name for name in drawn if name.startswith("class")]
        assert 1 <= len(of_it) < count


def test_a_single_image_and_unlabelled_ones_train():
    drawn = _tested(["only/0.jpg", *_class("cat", 50), *_class("unlabelled", 100)])
    assert {name.partition("/")[0] for name in drawn} == {"cat"}


def test_a_validation_folder_without_a_test_folder_is_the_test_split_and_is_told(capsys):
    assert find_splits("photos", ["train", "valid", "other"]) == SplitNames("valid", None)
    assert capsys.readouterr().err == "photos: has no 'test', so 'valid' is the test split\n"
    assert find_splits("photos", ["train", "valid", "test"]) == SplitNames("test", "valid")
    assert capsys.readouterr().err == ""
