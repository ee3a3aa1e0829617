"""Views of a store that is being written: the bytes of the complete one, as soon as they are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import IncompleteStoreError, MismatchError
from pipeline.dump.run import cache_logits
from pipeline.places.folder import Root, at
from pipeline.places.location import Location
from pipeline.places.objects import ObjectPlace
from pipeline.places.place import Place, required
from pipeline.store import follow as following
from pipeline.store import ledger, waiting
from pipeline.store.follow import FollowedStore, follow
from pipeline.store.header import Header
from pipeline.store.layout import MANIFEST, ShardId
from pipeline.store.ledger import Records
from pipeline.store.lock import WHOLE, writing
from pipeline.store.reader import LogitStore

VIEWS, BLOCKS = 3, 5


@dataclass
class Clock:
    """A clock in whose sleeps a dump makes its next step."""

    now: float = 0.0
    steps: list[Callable[[], object]] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.steps:
            self.steps.pop(0)()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(waiting, "time", found)
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 10.0)
    return found


@pytest.fixture(scope="module")
def whole(context, teacher, make_spec, tmp_path_factory) -> Path:
    """A store of 3 views of 5 blocks without missing shards and without its manifest."""
    path = tmp_path_factory.mktemp("whole") / "main.zarr"
    cache_logits(context, teacher, make_spec("affine8", view_count=VIEWS), path, completes=False)
    return path


@dataclass(frozen=True)
class Dump:
    """A dump in steps: what `whole` has, record by record."""

    whole: Place
    path: Root
    complete: Callable[[], object]

    @property
    def place(self) -> Place:
        return at(self.path)

    def begin(self) -> None:
        """Make the frame and the held-out shards; shards' files alone count for nothing."""
        for name in self.whole.sizes():
            if not name.startswith("records/train."):
                self.place.put(name, required(self.whole, name))

    def make(self, view: int, block: int) -> None:
        name = f"records/{ShardId('train', view, block)}.record"
        self.place.put(name, required(self.whole, name))

    def remove(self) -> None:
        self.place.delete(self.place.sizes())

    def steps(self, view: int) -> list[Callable[[], object]]:
        return [lambda block=block: self.make(view, block) for block in range(BLOCKS)]


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path) -> Root:
    """Where the dump is written."""
    return tmp_path / "main.zarr" if request.param == "folder" else ObjectPlace.in_memory() / "main.zarr"


@pytest.fixture
def dump(context, teacher, make_spec, whole, root) -> Dump:
    spec = make_spec("affine8", view_count=VIEWS)
    return Dump(at(whole), root, lambda: cache_logits(context, teacher, spec, root))


@pytest.fixture
def store(dump, clock) -> FollowedStore:
    """A followed store whose first view is whole."""
    dump.begin()
    for step in dump.steps(0):
        step()
    return follow(dump.path, timeout_seconds=150)


def test_views_are_read_before_the_manifest_with_the_bytes_of_the_complete_store(dump, clock):
    # It begins before there is a store.
    clock.steps = [dump.begin, *dump.steps(0), *dump.steps(1)]
    store = follow(dump.path)
    assert isinstance(store, FollowedStore)
    store.wait_for_held_out()
    store.wait_for_view(0)
    found = [store.encoded_view(0)]
    assert [store.has_view(view) for view in range(VIEWS)] == [True, False, False]
    assert store.summary()["complete"] is False
    store.wait_for_view(1)
    found.append(store.encoded_view(1))
    assert not dump.place.exists(MANIFEST)
    clock.steps = [*dump.steps(2), dump.complete]
    store.wait_for_view(2)
    found.append(store.encoded_view(2))
    dump.complete()
    complete = LogitStore.open(dump.path)
    for view, arrays in enumerate(found):
        for name, values in complete.encoded_view(view).items():
            np.testing.assert_array_equal(arrays[name], values)
    assert store.identity() == complete.identity()
    assert store.manifest.shards.digests.items() <= complete.manifest.shards.digests.items()
    assert type(follow(dump.path)) is LogitStore


def test_views_are_read_again_after_the_dump_has_removed_its_records(store, dump, monkeypatch):
    monkeypatch.setattr("pipeline.store.shards._KEPT", 1)
    assert store.has_view(0)
    before = store.encoded_view(0)
    for step in [*dump.steps(1), *dump.steps(2)]:
        step()
    dump.complete()
    assert dump.place.names("records") == []
    for view in (2, 0):
        after = store.encoded_view(view)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_a_view_that_is_not_whole_is_not_read(store):
    with pytest.raises(IncompleteStoreError, match="not written yet; wait for their view"):
        store.encoded_view(1)


def command(dump):
    """The command that messages name: a folder may be of --out, and no dump is written to memory://."""
    usual = "pipeline cache-logits main --by-view"
    if not isinstance(dump.path, Path):
        return usual
    return f"{usual} (or, if begun with --out: pipeline cache-logits DUMP --out {dump.path} --by-view)"


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_waiting_ends_when_nobody_writes(store, dump, clock, capfd):
    # Each shard begins the time anew.
    clock.steps = [*[lambda: None] * 9, lambda: dump.make(1, 4)]
    with pytest.raises(IncompleteStoreError) as refused:
        store.wait_for_view(1)
    assert str(refused.value) == (
        f"{dump.path}: waited for view 1, 4 of 5 shards missing, but no process has written the store for "
        f"150 s; resume the dump with: {command(dump)}, then run this command again"
    )
    assert clock.now == 100 + 150
    told = [line for line in capfd.readouterr().err.splitlines() if "waiting for" in line]
    assert len(told) == 5  # at the beginning, then once a minute
    assert told[0] == (
        f"{dump.path}: waiting for view 1, 5 of 5 shards missing; no process writes it; run: "
        f"{command(dump)}"
    )


def test_a_dump_that_never_begins_is_told(dump, clock):
    with pytest.raises(IncompleteStoreError, match="waited for the dump to begin, but no "):
        follow(dump.path, timeout_seconds=1)


@pytest.mark.parametrize("lacking", ["train/keys/c/0", "train/codes/zarr.json"])
def test_a_header_without_its_whole_frame_has_not_begun(dump, clock, lacking):
    # In object storage the frame follows the header.
    dump.begin()
    dump.place.delete([lacking])
    with pytest.raises(IncompleteStoreError, match="waited for the dump to begin, but no "):
        follow(dump.path, timeout_seconds=1)
    dump.place.put(lacking, required(dump.whole, lacking))
    assert follow(dump.path, timeout_seconds=1).n_views == VIEWS


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_a_writer_without_a_new_shard_is_waited_for_and_named(store, dump, clock, capfd):
    clock.steps = [*[lambda: None] * 50, *dump.steps(1)]
    with writing(dump.path, WHOLE):
        store.wait_for_view(1)
    assert clock.now > 500
    assert "; written by process " in capfd.readouterr().err


@pytest.mark.parametrize("root", ["bucket"], indirect=True)
def test_in_a_bucket_new_records_of_other_views_are_signs_of_a_writer(store, dump, clock, capfd):
    idle = [lambda: None] * 9
    clock.steps = [*idle, lambda: dump.make(2, 0), *idle, lambda: dump.make(2, 1), *idle, *dump.steps(1)]
    store.wait_for_view(1)
    assert clock.now > 2 * 150
    told = capfd.readouterr().err
    assert f"{dump.path}: waiting for view 1, 5 of 5 shards missing; if no process writes it, run: " in told
    assert "; 1 new shard since the last look" in told
    with pytest.raises(IncompleteStoreError) as refused:
        store.wait_for_view(2)
    assert str(refused.value) == (
        f"{dump.path}: waited for view 2, 3 of 5 shards missing, but no shard was added for 150 s; resume "
        f"the dump with: {command(dump)}, then run this command again"
    )


@pytest.mark.parametrize("root", ["bucket"], indirect=True)
def test_in_a_bucket_pauses_grow_with_the_time_waited(store, dump, clock, monkeypatch):
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.5)
    pauses, sleep = [], clock.sleep
    monkeypatch.setattr(clock, "sleep", lambda seconds: pauses.append(seconds) or sleep(seconds))
    with pytest.raises(IncompleteStoreError):
        store.wait_for_view(1)
    assert pauses == sorted(pauses)
    assert pauses[0] == 0.5
    assert 10 < pauses[-1] <= 15
    # It looks at 5, 10 and 100 seconds a tenth later at most.
    assert len(pauses) < 50


@pytest.mark.parametrize("root", ["bucket"], indirect=True)
def test_in_a_bucket_records_of_many_shards_are_listed_first(store, dump, monkeypatch):
    monkeypatch.setattr(following, "FEW", 2)
    monkeypatch.setattr(ledger, "FEW", 2)
    asked, get = [], ObjectPlace.get
    monkeypatch.setattr(
        ObjectPlace, "get", lambda place, name, *rest: asked.append(name) or get(place, name, *rest)
    )
    dump.make(1, 3)
    assert not store.has_view(1)
    assert {name for name in asked if name.startswith("records/train.v00001.")} == {
        f"records/{ShardId('train', 1, 3)}.{form}" for form in ("json", "record")
    }
    for step in dump.steps(1):
        step()
    assert store.has_view(1)


def test_the_order_of_the_dump_is_told_if_views_far_ahead_have_shards(dump, clock, capfd):
    dump.begin()
    for view in range(VIEWS):
        dump.make(view, 0)
    clock.steps = dump.steps(0)
    follow(dump.path).wait_for_view(0)
    assert "(to have whole views first, restart the dump with --by-view)" in capfd.readouterr().err


def test_a_store_that_was_begun_anew_is_refused(store, dump, clock, context, teacher, make_spec):
    def begin_anew() -> None:
        dump.remove()
        cache_logits(context, teacher, make_spec("fp16"), dump.path, completes=False)

    clock.steps = [begin_anew]
    with pytest.raises(MismatchError, match=r"changed while the store was followed.*run the command again"):
        store.wait_for_view(1)


def test_a_store_that_was_removed_is_refused(store, dump, clock):
    clock.steps = [dump.remove]
    with pytest.raises(IncompleteStoreError, match=r"no such store.*run: pipeline cache-logits main"):
        store.wait_for_view(1)


def test_a_damaged_record_counts_as_missing_until_it_is_written_again(store, dump):
    for step in dump.steps(1):
        step()
    record = f"records/{ShardId('train', 1, 3)}.record"
    content = bytearray(required(dump.place, record))
    content[-1] ^= 1
    dump.place.put(record, bytes(content))
    assert not store.has_view(1)
    dump.make(1, 3)
    assert store.has_view(1)


def test_a_shard_that_was_made_again_with_another_record_is_refused(store, dump, monkeypatch):
    assert store.has_view(0)
    header, shard = Header.read(Location(dump.path)), ShardId("train", 0, 2)
    record = Records(dump.path).read(header, [shard])[shard].record
    other = replace(record, labelled=record.labelled - 1, correct=0)
    Records(dump.path).drop([shard])
    assert Records(dump.path).write(shard, other, header.origin)
    with pytest.raises(MismatchError, match="shards of train view 0 were made again with other bytes"):
        store.encoded_view(0)
    dump.complete()
    with pytest.raises(MismatchError, match="shards of train view 0 were made again with other bytes"):
        store.has_view(1)
