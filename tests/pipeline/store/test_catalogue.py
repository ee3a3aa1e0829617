"""Catalogues: lossless, self-proving; lost, swapped, stale and foreign ones are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import CorruptStoreError, IncompleteStoreError, StoreError
from pipeline.dump.repair import repair
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import verify
from pipeline.store.catalogue import Catalogue
from pipeline.store.layout import Layout, Section, ShardId
from pipeline.store.reader import LogitStore
from pipeline.store.totals import Totals
from tests.pipeline.dump.test_growth import content
from tests.pipeline.store.forging import forge, forge_catalogue

SEED = 7


@pytest.fixture(scope="module")
def made(context, teacher, make_spec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logits") / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8"), folder)
    return folder


@pytest.fixture
def path(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "main.zarr"))


def catalogues_of(path: Path) -> dict[str, Path]:
    digests = json.loads((path / "manifest.json").read_text())["catalogues"]
    return {first: path / "catalogues" / digest for first, digest in digests.items()}


def test_spans_hold_every_shard_once_and_growth_adds_some():
    def cut(extents, views):
        train = Section(name="train", extents=extents, n_views=views)
        return Layout(codec="x", arrays={}, n_classes=2, shard_rows=4, sections={"train": train})

    small, large = cut(((0, 4 * 2500),), 2), cut(((0, 4 * 2500), (10_000, 7)), 3)
    for layout in (small, large):
        spans = list(layout.spans())
        assert len(spans) == layout.n_spans
        assert sorted(shard for span in spans for shard in span.shards()) == sorted(layout.shards())
        assert all(layout.span_of(shard) == span for span in spans for shard in span.shards())
        assert max(span.count for span in spans) <= 1024
    assert set(small.spans()) < set(large.spans())
    assert [large.has_span(span) for span in small.spans()] == [True] * small.n_spans


def test_a_catalogue_comes_back_as_it_was(made):
    manifest = LogitStore.open(made).manifest
    for span in manifest.layout.spans():
        catalogue = manifest.catalogue(span)
        records = [catalogue.record(shard) for shard in span.shards()]
        again = Catalogue.of(span, records, catalogue.head.made)
        assert again.to_bytes() == catalogue.to_bytes()
        parts = [catalogue.only(shard) for shard in span.shards()]
        assert Catalogue.joined(span, parts).to_bytes() == catalogue.to_bytes()
        assert [part.record(shard).to_dict() for part, shard in zip(parts, span.shards(), strict=True)] == [
            record.to_dict() for record in records
        ]


def test_totals_are_the_sums_of_the_records(made):
    manifest = LogitStore.open(made).manifest
    records = [record for shard, record in manifest.shards.items() if shard.section == "train"]
    totals = manifest.totals["train"]
    assert totals.bytes == sum(record.bytes for record in records)
    assert totals.rows == sum(record.rows for record in records) == 3 * 68
    assert totals.fidelity.samples == totals.rows
    assert Totals.from_dict(json.loads(json.dumps(totals.to_dict()))) == totals


def test_opening_reads_no_catalogue_and_a_view_reads_its_own(path):
    wanted = catalogues_of(path)
    for first, file in wanted.items():
        if first != "train.v00001.b00000":
            file.unlink()
    store = LogitStore.open(path)
    store.view(1)
    with pytest.raises(
        IncompleteStoreError, match=r"the catalogue of train view 2, blocks 0 to 4, is missing"
    ):
        store.view(2)


@pytest.mark.parametrize("damage", ["flip", "truncate", "swap", "foreign", "stale"])
def test_another_catalogue_is_refused_by_name(path, damage, context, teacher, make_spec, tmp_path):
    found = catalogues_of(path)
    file = found["train.v00001.b00000"]
    before = file.read_bytes()
    if damage == "flip":
        changed = bytearray(before)
        changed[-1] ^= 1
        file.write_bytes(changed)
    elif damage == "truncate":
        file.write_bytes(before[:-1])
    elif damage == "swap":
        file.write_bytes(found["train.v00002.b00000"].read_bytes())
    else:
        other = tmp_path / "other.zarr"
        cache_logits(context, teacher, make_spec("affine8" if damage == "stale" else "fp16"), other)
        file.write_bytes(catalogues_of(other)["train.v00000.b00000"].read_bytes())
    with pytest.raises(CorruptStoreError, match="the catalogue of train view 1, blocks 0 to 4,"):
        LogitStore.open(path).view(1)
    LogitStore.open(path).view(0)
    assert [line for line in verify(path).bad if file.name in line]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update({"train.v00001.b00000": c["train.v00002.b00000"]}), "it is of train view 2"),
        (lambda c: c.update({"train.v00001.b00000": c["test.v00000.b00000"]}), "it is of test view 0"),
    ],
)
def test_a_catalogue_of_other_shards_is_refused_though_its_digest_fits(path, change, told):
    forge(path, lambda manifest: change(manifest["catalogues"]))
    with pytest.raises(CorruptStoreError, match=told):
        LogitStore.open(path).view(1)


def test_a_catalogue_of_another_teacher_is_refused_though_its_digest_fits(path):
    def change(manifest):
        content = catalogues_of(path)["train.v00001.b00000"].read_bytes()
        made = json.loads(content.partition(b"\n")[0])["made"]
        digest = forge_catalogue(path, content.replace(made.encode(), b"0" * 64))
        manifest["catalogues"]["train.v00001.b00000"] = digest

    forge(path, change)
    with pytest.raises(CorruptStoreError, match="belongs to another store"):
        LogitStore.open(path).view(1)


def problem(path: Path) -> str | None:
    try:
        LogitStore.open(path).manifest.shards[ShardId("train", 1, 0)]
    except StoreError as error:
        return str(error)
    return None


@pytest.mark.parametrize("trials", [150])
def test_any_byte_of_a_catalogue_ends_in_one_line(path, trials):
    """With a digest that fits: refused, or served as what it says."""
    generator, name = np.random.default_rng(SEED), "train.v00001.b00000"
    whole, before = catalogues_of(path)[name].read_bytes(), (path / "manifest.json").read_bytes()
    refused = 0
    for _ in range(trials):
        changed = bytearray(whole)
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            changed[place] = generator.integers(256)
        digest = forge_catalogue(path, bytes(changed[: len(whole) - generator.integers(0, 2)]))
        forge(path, lambda manifest, digest=digest: manifest["catalogues"].update({name: digest}))
        said = problem(path)
        refused += said is not None
        assert "\n" not in (said or "")
        (path / "manifest.json").write_bytes(before)
    assert refused > trials // 3


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("damage", ["flip", "remove", "empty"])
def test_a_lost_catalogue_costs_no_forward_pass(path, context, teacher, monkeypatch, copied, damage):
    before, file = content(path), catalogues_of(path)["train.v00002.b00000"]
    file = file.with_name(f"{file.name}.copy") if copied else file
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[::-1])
    assert not verify(path).ok
    monkeypatch.setattr(type(teacher), "output", lambda *_: pytest.fail("a forward pass"))
    repair(path, context, teacher)
    assert content(path) == before


def test_a_catalogue_lost_with_its_copy_is_made_again(path, context, teacher):
    before, file = content(path), catalogues_of(path)["train.v00002.b00000"]
    file.unlink()
    file.with_name(f"{file.name}.copy").unlink()
    repair(path, context, teacher)
    assert content(path) == before


def test_a_lost_manifest_and_a_lost_catalogue_cost_no_forward_pass(path, context, teacher, monkeypatch):
    before = content(path)
    (path / "manifest.json").unlink()
    catalogues_of_before = sorted((path / "catalogues").glob("*[!y]"))
    catalogues_of_before[0].unlink()
    monkeypatch.setattr(type(teacher), "output", lambda *_: pytest.fail("a forward pass"))
    repair(path, context, teacher)
    assert content(path) == before


def test_a_catalogue_that_no_manifest_names_is_swept(path, context, teacher, make_spec):
    before = content(path)
    digest = forge_catalogue(path, b"of a killed repair")
    assert verify(path).ok
    cache_logits(context, teacher, make_spec("affine8"), path)
    assert not (path / "catalogues" / digest).exists()
    assert content(path) == before
