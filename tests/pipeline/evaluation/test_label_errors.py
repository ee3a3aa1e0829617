"""Labels that were made wrong on purpose, and a teacher that knows better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.core.team import Elsewhere
from pipeline.dump.run import cache_logits
from pipeline.evaluation import label_errors
from pipeline.evaluation.context import RunContext
from pipeline.evaluation.label_errors import LabelErrors, find_label_errors
from pipeline.modalities.images.augmentations import Mixup
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher
from pipeline.report.tables import make_gallery
from pipeline.samples.samples import Source
from pipeline.store.layout import ShardId
from pipeline.store.reader import LogitStore, SectionReader
from pipeline.tasks.table import find_task
from tests.pipeline.teams import Copies

# Names of the source's samples that get the next class instead of their own.
FLIPPED = {"train/4", "train/37", "train/81", "test/11"}


class _Bars(nn.Module):
    """Finds the bright row by hand: a teacher without an error, more or less sure of it."""

    def __init__(self, classes: int, sharpness: float) -> None:
        super().__init__()
        self.classes, self.sharpness = classes, nn.Parameter(torch.tensor(sharpness))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (8, 1))[:, 0, :, 0]
        return self.sharpness * rows[:, : 2 * self.classes : 2]


def _flip(samples, classes):
    return [
        replace(s, label=(s.label + 1) % classes) if s.name in FLIPPED else s for s in samples
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(make_source, prepare_quietly, tmp_path_factory) -> PreparedData:
    source: Source = make_source()
    wrong = replace(source, train=_flip(source.train, 3), test=_flip(source.test, 3))
    return PreparedData.open(prepare_quietly(wrong, tmp_path_factory.mktemp("wrong") / "prepared"))


@pytest.fixture(scope="module")
def dump(data, teacher, make_spec, tmp_path_factory) -> Callable[..., LogitStore]:
    """Dump the wrong data with a teacher that sees what is there."""

    def make(sharpness: float = 8.0, **changes) -> LogitStore:
        path: Path = tmp_path_factory.mktemp("dump") / "main.zarr"
        knowing = replace(teacher, network=_Bars(3, sharpness).eval(), card=_card(teacher, data))
        context = RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1)
        views = replace(make_spec().views, random_resized_crop=None, flip="random", **changes)
        cache_logits(context, knowing, make_spec(views=views), path)
        return LogitStore.open(path)

    return make


def _card(teacher: Teacher, data: PreparedData):
    preprocessing = replace(teacher.card.preprocessing, size=8, **data.statistics)
    return replace(teacher.card, preprocessing=preprocessing)


@pytest.fixture(scope="module")
def store(dump) -> LogitStore:
    return dump()


@pytest.fixture(scope="module")
def found(store, data) -> LabelErrors:
    return find_label_errors(store, data, 20)


def test_labels_that_were_flipped_are_found_and_no_other(found, data):
    assert {error.sample for error in found.worst} == FLIPPED
    assert found.doubted == len(FLIPPED)
    assert found.checked == len(data.train) + len(data.validation) + len(data.test) == 120


def reopen(store: Path, prepared: Path) -> tuple[LogitStore, PreparedData]:
    return LogitStore.open(store), PreparedData.open(prepared)


def test_other_processes_find_the_same(found, store, data):
    prepared = Path(data.train.origin).parent
    there = Elsewhere(team=Copies(3), reopen=partial(reopen, store.location.root, prepared))
    assert find_label_errors(store, data, 20, elsewhere=there) == found


def test_each_says_what_it_is_and_what_the_teacher_sees(found, data):
    for error in found.worst:
        images = getattr(data, error.split)
        assert images.names[error.row] == error.sample
        assert data.classes[images.labels[error.row]] == error.label
        assert data.classes[int(error.sample.split("/")[1]) % 3] == error.predicted
        assert error.label_probability < 0.05 < 0.5 < error.probability
    assert {error.split for error in found.worst} >= {"train", "test"}


def test_probabilities_are_means_over_the_views(found, store, data):
    error = next(error for error in found.worst if error.split == "train")
    place = store.rows_of(data.train)[error.row]
    views = torch.stack([store.view(v).double().softmax(1)[place] for v in range(store.n_views)]).mean(0)
    assert error.label_probability == pytest.approx(float(views[data.classes.index(error.label)]))
    assert error.probability == pytest.approx(float(views.max()))


def test_the_least_likely_labels_come_first(found, store, data):
    shares = [error.label_probability for error in found.worst]
    assert shares == sorted(shares)
    fewer = find_label_errors(store, data, 2)
    assert fewer.worst == found.worst[:2]
    assert fewer.doubted == found.doubted


def test_a_teacher_that_is_not_sure_contradicts_nobody(dump, data):
    found = find_label_errors(dump(sharpness=0.01), data, 20)
    assert (found.doubted, found.worst) == (0, ())


def test_unlabelled_images_have_no_wrong_label(store, data):
    labels = data.train.labels.copy()
    labels[::2] = -1
    partly = replace(data, train=replace(data.train, labels=labels))
    found = find_label_errors(store, partly, 20)
    assert found.checked == 120 - len(labels[::2])
    assert all(error.row % 2 for error in found.worst if error.split == "train")


def test_images_of_mixed_views_are_passed_over(dump, data):
    found = find_label_errors(dump(mixup=Mixup(probability=0.5)), data, 20)
    assert found.checked == len(data.validation) + len(data.test)
    assert "test/11" in {error.sample for error in found.worst}


def test_an_exhibit_shows_the_picture_of_each(store, data, found):
    gallery = make_gallery("main", store, data)
    assert gallery.label_errors == found
    assert [suspect.found for suspect in gallery.suspects] == list(found.worst)
    assert all(suspect.picture.uri.startswith("data:image/png") for suspect in gallery.suspects)
    assert len({suspect.picture for suspect in gallery.suspects}) == len(FLIPPED)
    assert len(gallery.examples) == 6


def test_a_store_without_its_shards_has_no_exhibit(dump, data, capsys):
    store = dump()
    file = next(iter(store.manifest.shard_files()))
    (Path(str(store.location)) / file).unlink()
    gallery = make_gallery("main", store, data)
    assert (gallery.examples, gallery.label_errors) == ((), None)
    assert "its logits are not on this machine" in capsys.readouterr().err


def test_a_large_dump_is_read_in_a_stated_sample_of_views(dump, data, monkeypatch):
    store = dump()
    whole = find_label_errors(store, data, 20)
    assert (whole.views, whole.stored_views) == (3, 3)
    monkeypatch.setattr(label_errors, "MOST_PAIRS", 1)
    monkeypatch.setattr(label_errors, "LEAST_VIEWS", 2)
    read: list[int] = []
    original = SectionReader.encoded

    def spy(self: SectionReader, view: int, rows: object = None) -> object:
        read.append(view)
        return original(self, view, rows)

    monkeypatch.setattr(SectionReader, "encoded", spy)
    some = find_label_errors(store, data, 20)
    assert (some.views, some.stored_views) == (2, 3)
    assert {0, 2} == set(read)
    assert some.checked == whole.checked
    assert {error.sample for error in some.worst} == {error.sample for error in whole.worst}


def test_findings_do_not_depend_on_the_number_of_threads(dump, data):
    store = dump()
    assert find_label_errors(store, data, 20, workers=3) == find_label_errors(store, data, 20)


def test_labels_are_read_in_one_pass_and_the_worst_from_few_shards(dump, data, monkeypatch):
    store, read = dump(), []
    original = SectionReader.read_shard

    def spy(self: SectionReader, shard: ShardId, array: str) -> object:
        read.append(shard)
        return original(self, shard, array)

    monkeypatch.setattr(SectionReader, "read_shard", spy)
    found = find_label_errors(store, data, 20)
    train = [shard for shard in read if shard.section == "train"]
    n_arrays, n_shards = len(store.manifest.layout.arrays), len(set(train))
    worst = store.rows_of(data.train)[[error.row for error in found.worst if error.split == "train"]]
    again = len(set((worst // store.manifest.layout.shard_rows).tolist())) * store.n_views
    assert 0 < again < n_shards
    assert len(train) == (n_shards + again) * n_arrays
