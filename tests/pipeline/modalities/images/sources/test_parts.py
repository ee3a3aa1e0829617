"""Tars and tables: the same pictures give the same pixels, labels and views, however they are packed."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError, DataError
from pipeline.loading.feed import Feed
from pipeline.modalities.images import decoding
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.encoded import ContainedSplit
from pipeline.modalities.images.intake import ImageIntake
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.samples.containers import require_cells
from pipeline.samples.label_forms import Wanted
from pipeline.samples.prepare import Preparation, prepare
from pipeline.samples.tars import list_members
from tests.pipeline.modalities.images.sources.packing import (
    CLASSES,
    members,
    of_split,
    pictures,
    write_csv,
    write_folder,
    write_parquet,
    write_saved,
    write_tar,
    write_tars,
)
from tests.pipeline.samples.test_draft import Stop

VIEWS = ViewSpec(seed=4, random_resized_crop=RandomResizedCrop(), flip="random")
KEEP = pytest.mark.parametrize("keep", ["pixels", "encoded"])
ANY = Wanted(task="embedding", kinds=("index", "tags", "numbers"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder, without waiting for disks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return tmp_path


def prepared(source: str, *, folder: str = "out", progress: Stop | None = None, **given) -> PreparedData:
    """Prepare a source with these keys of `data`, and open it."""
    options = ImageOptions(**given)
    opened = open_source(source, options)
    intake = ImageIntake(opened, Path(folder), options)
    asked = Preparation(origin=source, labels=ANY)
    state, progress = Path(f"{folder}.state"), progress or Stop()
    prepare(opened, Path(folder), asked, intake, state=state, workers=2, progress=progress)
    return PreparedData.open(Path(folder))


@pytest.fixture
def packed() -> dict[str, tuple[str, dict]]:
    """The same pictures in every form: name -> value of `data.source`, and further keys."""
    pytest.importorskip("pyarrow")
    some = pictures()
    write_tars(Path("tars"), some)
    write_saved(Path("saved"), some)
    write_csv(write_folder(Path("photos"), some) / "metadata.csv", some)
    for split in ("train", "test"):
        write_parquet(Path(f"tables/{split}-00000-of-00001.parquet"), of_split(some, split))
    held = {"test_files": "tables/test*.parquet", "id": "id"}
    return {
        "wds": ("wds:tars", {}),
        "wds by ranges": ("wds:tars/train-{000..001}.tar", {"test_files": "tars/test-*.tar"}),
        "wds json": ("wds:tars", {"label": "json:label"}),
        "parquet": ("parquet:tables", {}),
        "parquet by id": ("parquet:tables/train*.parquet", held),
        "hf": ("hf:saved", {}),
        "hf by id": ("hf:saved", {"id": "id"}),
        "csv": ("csv:photos/metadata.csv", {}),
    }


@KEEP
def test_every_form_gives_the_folders_pixels_and_labels(packed, keep):
    reference = prepared("folder:photos", folder="folder")
    for number, (form, (source, given)) in enumerate(packed.items()):
        data = prepared(source, folder=f"out-{number}", keep=keep, **given)
        assert data.classes == CLASSES, form
        for name in ("train", "test"):
            ours, theirs = getattr(data, name), getattr(reference, name)
            assert len(ours) == len(theirs)
            assert isinstance(ours, ContainedSplit) == (keep == "encoded" and form != "csv")
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            for row in range(len(ours)):
                np.testing.assert_array_equal(ours.array(row), theirs.array(row))


def rendered(data: PreparedData, order: list[int]) -> torch.Tensor:
    """Return view 3 of some training samples."""
    preprocessing = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    feed = Feed(data.train, VIEWS, preprocessing, device=torch.device("cpu"))
    return feed.pixels(3, np.array(order))


def test_equal_keys_give_equal_views(packed):
    tars = prepared(*packed["wds"][:1], folder="a")
    table = prepared(packed["parquet by id"][0], folder="b", keep="encoded", **packed["parquet by id"][1])
    by_content = prepared(packed["hf"][0], folder="c")
    np.testing.assert_array_equal(tars.train.keys, table.train.keys)
    every = list(range(len(tars.train)))
    assert torch.equal(rendered(tars, every), rendered(table, every))
    assert not set(tars.train.keys.tolist()) & set(by_content.train.keys.tolist())
    assert not torch.equal(rendered(tars, every), rendered(by_content, every))


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_tars_that_move_and_are_divided_anew_change_no_key_and_no_draw(shards):
    some = pictures(12, ("train",))
    before = prepared(f"wds:{write_tars(Path('before'), some)}", folder="a")
    mixed = [some[row] for row in np.random.default_rng(shards).permutation(len(some))]
    after = prepared(f"wds:{write_tars(Path('some/where/else'), mixed, shards=shards)}", folder="b")
    for name in ("train", "test"):
        ours, theirs = getattr(before, name), getattr(after, name)
        assert sorted(ours.names) == sorted(theirs.names)
        digests = [
            dict(zip(one.keys.tolist(), one.digests.tolist(), strict=True)) for one in (ours, theirs)
        ]
        assert digests[0] == digests[1]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Which images were decoded, by their names for messages."""
    names: list[str] = []

    def spy(content, channels, path, decode=decoding.decode):
        names.append("/".join(Path(path).parts[-2:]))
        return decode(content, channels, path)

    monkeypatch.setattr(decoding, "decode", spy)
    return names


def test_an_appended_member_makes_no_other_one_new(decoded):
    some = pictures(8)
    write_tars(Path("tars"), some, shards=1)
    with pytest.raises(KeyboardInterrupt):
        prepared("wds:tars", progress=Stop(10))
    assert len(decoded) >= 10
    decoded.clear()
    train = of_split(some, "train")
    more = train[3]._replace(name="cat/added")
    # In front of all others, and of another time: every place in the tar is another one.
    write_tar(Path("tars/train-000.tar"), members([more, *train]), seconds=9)
    data = prepared("wds:tars")
    assert "cat/added.jpg" in decoded
    assert len(decoded) <= len(some) + 1 - 9
    assert list(data.train.names) == ["cat/added", *(picture.name for picture in train)]


def test_a_replaced_member_is_read_again(decoded):
    some = pictures(8)
    write_tars(Path("tars"), some, shards=1)
    with pytest.raises(KeyboardInterrupt):
        prepared("wds:tars", progress=Stop(10))
    decoded.clear()
    train = of_split(some, "train")
    train[0], train[2] = train[0]._replace(content=train[2].content), train[2]
    write_tar(Path("tars/train-000.tar"), members(train))
    data = prepared("wds:tars")
    assert "cat/0.png" in decoded
    np.testing.assert_array_equal(data.train.array(0), data.train.array(2))


def test_encoded_images_of_tars_that_changed_are_named():
    write_tars(Path("tars"), pictures(), shards=1)
    train = prepared("wds:tars", keep="encoded").train
    assert train.array(0).shape == (20, 24, 3)
    path = Path("tars/train-000.tar")
    content = path.read_bytes()
    path.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    with pytest.raises(DataError, match=r"train-000.tar/cat/0: content \([\d,]+ bytes\) has changed"):
        train.array(0)
    path.write_bytes(content[:700])
    with pytest.raises(DataError, match=r"train-000.tar: ends before byte"):
        train.array(1)
    path.unlink()
    with pytest.raises(DataError, match=r"train-000.tar: cannot be read \(No such file"):
        train.array(1)
    assert len(train.faults(np.arange(len(train)))) == len(train)


def test_encoded_data_moves_with_its_tars(monkeypatch, tmp_path):
    Path("before").mkdir()
    monkeypatch.chdir("before")
    write_tars(Path("tars"), pictures())
    expected = prepared("wds:tars", keep="encoded").train.array(5)
    monkeypatch.chdir(tmp_path)
    Path("before").rename("after")
    np.testing.assert_array_equal(PreparedData.open(Path("after/out")).train.array(5), expected)


def test_an_index_with_impossible_places_is_refused():
    write_tars(Path("tars"), pictures())
    prepared("wds:tars", keep="encoded")
    columns = {"parts": np.array([4]), "starts": np.array([0]), "lengths": np.array([1])}
    with pytest.raises(DataError, match=r"names part 4 of 4; run: pipeline prepare"):
        require_cells(Path("train.npz"), columns, 4)


# Labels


def tar_of(**label: bytes) -> str:
    """Write tars of two splits in which each sample has members of these suffixes."""
    for split in ("train", "test"):
        found = []
        for number, picture in enumerate(pictures(4, ("train",))):
            found.append((f"{number}.png", picture.content))
            found += [(f"{number}.{suffix}", content) for suffix, content in label.items()]
        write_tar(Path(f"tars/{split}.tar"), found)
    return "wds:tars"


@pytest.mark.parametrize(
    ("label", "content", "classes", "expected"),
    [
        ("json:tags", b'{"tags": ["b", "a"]}', ("a", "b"), [1, 1]),
        ("json", b'{"a": 1, "b": 0}', ("a", "b"), [1, 0]),
        ("json:scores", b'{"scores": [0.5, 2]}', ("0", "1"), [0.5, 2]),
        ("txt", b"0.25\n", ("0",), [0.25]),
    ],
)
def test_members_have_tags_and_numbers(label, content, classes, expected):
    source = tar_of(**{label.partition(":")[0]: content})
    data = prepared(source, label=label)
    assert data.classes == classes
    assert data.train.labels.tolist() == [expected] * len(data.train)


def test_tables_have_tags_in_columns_or_lists():
    some = pictures()
    write_folder(Path("photos"), some)
    paths = [f"{picture.split}/{picture.name}.{picture.suffix}" for picture in some]
    rows = [f"{path},{n % 2},{'' if n == 0 else 1},round;red,{n / 4}" for n, path in enumerate(paths)]
    Path("photos/all.csv").write_text("path,sharp,dark,tags,score\n" + "\n".join(rows))
    data = prepared("csv:photos/all.csv", label="sharp, dark", folder="a")
    assert (data.classes, data.train.labels.dtype) == (("sharp", "dark"), np.int8)
    assert sorted({tuple(row) for row in [*data.train.labels.tolist(), *data.test.labels.tolist()]}) == [
        *((0, -1), (0, 1), (1, 1)),
    ]
    assert prepared("csv:photos/all.csv", label="tags", folder="b").classes == ("red", "round")
    assert prepared("csv:photos/all.csv", label="score", folder="c").train.labels.dtype == np.float32


def test_samples_without_labels_are_prepared_if_that_is_asked_for():
    source = tar_of(json=b"{}")
    data = prepared(source, label="none")
    assert np.isnan(data.train.labels).all()
    with pytest.raises(DataError, match=r"8 samples without a label .cls: tars/t.*/0 has .png, .json"):
        open_source(source, ImageOptions())


def test_unlabelled_tars_train():
    some = pictures()
    write_tars(Path("tars"), some)
    extra = [(f"more/{number}.png", picture.content) for number, picture in enumerate(some[:3])]
    write_tar(Path("tars/unlabelled.tar"), extra)
    data = prepared("wds:tars")
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * 3


# Bad input: one clear line each.


def refused(match: str, source: str, kind: type[Exception] = DataError, **given) -> None:
    with pytest.raises(kind, match=match) as caught:
        open_source(source, ImageOptions(**given))
    assert "\n" not in str(caught.value)


@pytest.fixture
def tar() -> bytes:
    """The bytes of a tar that is cut next."""
    return write_tar(Path("whole.tar"), members(pictures(3, ("train",)))).read_bytes()


@pytest.mark.parametrize("end", [0, 100, 512, 700, 1000, 5 * 512, 6000, -10240])
def test_a_tar_cut_anywhere_is_refused(tar, end):
    Path("cut.tar").write_bytes(tar[:end])
    refused(r"cut.tar: .*(whole tar|end mark)", "wds:cut.tar")


def test_a_tar_cut_between_two_members_is_refused(tar):
    found, _ = list_members(Path("whole.tar"))
    for member in found[1:]:
        Path("cut.tar").write_bytes(tar[: member.start - 512])
        refused(r"cut.tar: ends at byte .* before the end mark of a tar", "wds:cut.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tar: gzip.compress(tar), "is compressed, so no member can be read alone"),
        (lambda tar: tar + tar, "has data behind the end mark"),
        (lambda tar: b"GIF89a" * 500, "not a whole tar"),
    ],
)
def test_what_is_no_tar_is_refused(tar, change: Callable[[bytes], bytes], message):
    Path("cut.tar").write_bytes(change(tar))
    refused(message, "wds:cut.tar")


def test_a_damaged_header_does_not_end_a_tar(tar):
    at = list_members(Path("whole.tar"))[0][4].start - 512
    Path("cut.tar").write_bytes(tar[:at] + b"x" * 512 + tar[at + 512 :])
    refused(rf"cut.tar: has a damaged header at byte {at:,}, before the end mark", "wds:cut.tar")


def test_all_cut_tars_are_counted(tar):
    for name in ("a", "b", "c"):
        Path(f"train-{name}.tar").write_bytes(tar if name == "b" else tar[:700])
    refused(r"train-a.tar: not a whole tar .*\(1 more tars cannot be read\)", "wds:train-{a,b,c}.tar")


def test_samples_that_lack_something_are_counted_with_what_they_have():
    some = members(pictures(3, ("train",)))
    write_tar(Path("a.tar"), [pair for pair in some if not pair[0].endswith("1.cls")])
    refused(r"2 samples without a label .cls: a.tar/cat/1 has .jpg, .json, a.tar/dog/1", "wds:a.tar")
    write_tar(Path("b.tar"), [pair for pair in some if not pair[0].endswith(".jpg")])
    refused(r"2 samples without an image: b.tar/cat/1 has .cls, .json", "wds:b.tar")
    write_tar(Path("c.tar"), [*some, ("cat/0.gif", b"")])
    refused(r"1 samples with several images: c.tar/cat/0 has .png, .cls, .json, .gif", "wds:c.tar")
    write_tar(Path("d.tar"), [*some, ("cat/0.json", b"{")])
    refused(r"1 members of one name and suffix as another one: d.tar/cat/0.json", "wds:d.tar")
    refused(r"6 labels that cannot be read: .* \(\"no key 'lable'\"\)", "wds:a.tar", label="json:lable")


def test_a_key_in_two_tars_is_named_with_both():
    some = pictures(3, ("train",))
    write_tar(Path("train-0.tar"), members(some))
    write_tar(Path("train-1.tar"), members(some[:2]))
    message = r"two images of one name, 'cat/0' in train-0.tar/cat/0.png and train-1.tar/cat/0.png \(2 such"
    refused(message, "wds:train-{0..1}.tar")


def test_missing_shards_are_counted_and_addresses_refused():
    write_tars(Path("tars"), pictures())
    refused(
        r"tars/train-002.tar, tars/train-003.tar: no such file \(2 names", "wds:tars/train-{000..003}.tar"
    )
    refused("no such file", "wds:nowhere/*.tar")
    refused("is no local path", "wds:http://host/{000..009}.tar", ConfigError)
    refused("has the range 9..3", "wds:tars/{9..3}.tar", ConfigError)


def test_members_that_are_not_used_are_counted():
    source = open_source(f"wds:{write_tars(Path('tars'), pictures())}", ImageOptions())
    assert str(source.left_out) == "24 files (.json 24)"


def test_an_image_that_does_not_decode_is_named_and_all_are_listed():
    some = [
        picture._replace(content=picture.content[:40]) if n in (1, 5) else picture
        for n, picture in enumerate(pictures())
    ]
    write_tars(Path("tars"), some, shards=1)
    with pytest.raises(DataError, match=r"2 of 24 images cannot be read: tars/train-000.tar/cat/1.jpg, "):
        prepared("wds:tars")
    assert len(Path("out.state/unreadable.txt").read_text().splitlines()) == 2


def test_tables_say_what_they_lack():
    pytest.importorskip("pyarrow")
    some = pictures(3, ("train",))
    write_parquet(Path("a.parquet"), some)
    columns = "a.parquet: has the columns image, label, id; expected"
    refused(f"{columns} 'img'; set data.image; did you mean 'image'?", "parquet:a.parquet", image="img")
    refused(f"{columns} 'lable'; set data.label", "parquet:a.parquet", label="lable")
    refused(f"{columns} 'key'; set data.id", "parquet:a.parquet", id="key")
    twice = [picture._replace(name="same") for picture in some]
    write_parquet(Path("b.parquet"), twice)
    refused(r"'same' in b.parquet, row 0 and b.parquet, row 1 \(5 such", "parquet:b.parquet", id="id")
    Path("c.parquet").write_bytes(b"PAR1 no")
    refused("c.parquet: not a Parquet file", "parquet:c.parquet")
    refused("no such folder; expected one written by save_to_disk", "hf:nowhere")


def test_a_row_without_an_image_is_named():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = pictures(1, ("train",))[0].content
    images = [{"bytes": content, "path": None}, {"bytes": None, "path": None}, None]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1, 0]}), "a.parquet")
    refused(r"2 rows without an image: a.parquet, row 1, a.parquet, row 2", "parquet:a.parquet")


def test_a_row_may_name_a_file_below_its_table():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    some = pictures(2, ("train",))
    write_folder(Path("photos"), some)
    images = [{"bytes": None, "path": f"train/{p.name}.{p.suffix}"} for p in some]
    for number, last in enumerate((images[-1], {"bytes": None, "path": "../secret.png"})):
        table = pyarrow.table({"image": [*images[:-1], last], "label": [0, 0, 1, 1]})
        parquet.write_table(table, f"photos/{number}.parquet")
    data = prepared("parquet:photos/0.parquet")
    assert len(data.train) + len(data.test) == 4
    refused("1 rows without an image: photos/1.parquet, row 3", "parquet:photos/1.parquet")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\n../a.png,cat\n", r"a.csv, line 2: '../a.png' leads out of"),
        ("path,label\n/etc/a.png,cat\n", r"a.csv, line 2: '/etc/a.png' leads out of"),
        ("path,label\nx.png\n", r"a.csv:2: 1 field; expected 2"),
        ("path,label\n,cat\nb.png,dog\n", r"1 lines without a path: a.csv, line 2"),
        ("path,label\nb.png,cat\nb.png,dog\n", r"two images of one name, 'b.png'"),
        ("name,label\nb.png,cat\n", r"expected one of file_name, path"),
        ("path,label,split\nb.png,cat,tain\n", r"a.csv, line 2: split 'tain'; expected train"),
        ("path,label,split\nb.png,cat,test\n", r"no rows for training"),
        ("path,label,split\nb.png,cat,train\nc.png,cow,test\n", r"label 'cow' is no class of the training"),
        ("path,label\n", r"no rows for training"),
    ],
)
def test_a_wrong_csv_is_one_line(table, message):
    Path("a.csv").write_text(table)
    refused(message, "csv:a.csv")


def test_missing_files_of_a_csv_are_all_listed():
    some = pictures()
    write_csv(write_folder(Path("photos"), some) / "a.csv", some)
    for name in ("train/cat/0.png", "test/dog/2.png"):
        Path("photos", name).unlink()
    with pytest.raises(DataError, match=r"2 of 24 images cannot be read: photos/train/cat/0.png, photos/"):
        prepared("csv:photos/a.csv")


def test_keys_of_tars_and_tables_belong_to_their_sources():
    with pytest.raises(ConfigError, match=r"label is 'cls', but source is 'folder:photos', which does not"):
        ImageOptions(label="cls").require_source("folder:photos")
    with pytest.raises(ConfigError, match=r"only folder, wds, parquet, hf, csv sources can leave"):
        ImageOptions(keep="encoded").require_source("npz:a.npz")
    with pytest.raises(ConfigError, match=r"named by their paths"):
        ImageOptions(keep="encoded", id="id").require_source("csv:a.csv")
    with pytest.raises(ConfigError, match=r"test_files is 'b', but source is 'hf:a'"):
        ImageOptions(test_files="b").require_source("hf:a")


def test_only_asked_keys_are_written_down(packed):
    source, given = packed["parquet by id"]
    options = ImageOptions(**given)
    assert set(options.omitted) == {"image", "label", "validation_files", "unlabelled_files"}
    prepared(source, **given)
    described = json.loads(Path("out/dataset.json").read_text())
    assert "contained" not in described
