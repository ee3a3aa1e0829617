"""What a source gives, and what it says it leaves out: suffixes, links, loose and hidden files, splits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.samples.labels import require_class_names

CLASSES = ("cat", "dog")


def _save(path, seed=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """train/{cat,dog}/{0,1}.png and test/{cat,dog}/0.png."""
    for name in CLASSES:
        for place in (f"train/{name}/0.png", f"train/{name}/1.png", f"test/{name}/0.png"):
            _save(tmp_path / "images" / place)
    return tmp_path / "images"


def _open(root):
    return open_source(f"folder:{root}", ImageOptions(root=root))


def _names(samples) -> list[str]:
    return [sample.name for sample in samples]


def test_nothing_is_said_where_nothing_is_left_out(root):
    assert (str(_open(root).left_out), _open(root).left_out.to_dict()) == ("", {})


def test_every_file_that_is_not_read_is_counted_by_reason(root):
    for name in ("a.heic", "b.HEIC", "c.mp4", "noext", ".DS_Store", "Thumbs.db", "._0.png"):
        (root / "train/cat" / name).write_bytes(b"x")
    _save(root / "train/loose.png")
    _save(root / "test/loose.png")
    (root / "train/.git").mkdir()
    (root / "masks").mkdir()
    source = _open(root)
    assert len(source.train) == 4
    assert str(source.left_out) == (
        "4 files (.heic 2, .mp4 1, no suffix 1), 1 loose in test/, 1 loose in train/, 4 hidden, "
        "not read: masks/"
    )
    assert source.left_out.to_dict()["suffixes"] == {".heic": 2, ".mp4": 1, "no suffix": 1}


def test_prepare_tells_it_and_writes_it_down(root, tmp_path, prepare_quietly, capsys):
    (root / "train/cat/a.heic").write_bytes(b"x")
    folder = prepare_quietly(_open(root), tmp_path / "prepared", validation=0)
    assert "left out: 1 file (.heic 1)\n" in capsys.readouterr().err
    assert json.loads((folder / "dataset.json").read_text())["left_out"] == {"suffixes": {".heic": 1}}


def test_a_class_whose_files_are_all_left_out_says_so(root):
    for row in range(2):
        (root / f"train/cat/{row}.png").rename(root / f"train/cat/{row}.heic")
    with pytest.raises(
        DataError, match=r"train/cat: a class folder without images, left out: 2 files \(.heic 2\)"
    ):
        _open(root)


def test_linked_folders_are_followed_as_image_folder_does(root, tmp_path):
    from torchvision.datasets import ImageFolder

    _save(tmp_path / "disk2/deep/9.png")
    (root / "train/cat/batch").symlink_to(tmp_path / "disk2")
    (root / "train/dog/batch").symlink_to(tmp_path / "disk2")
    found = _names(_open(root).train)
    assert "train/cat/batch/deep/9.png" in found
    assert "train/dog/batch/deep/9.png" in found
    assert len(found) == len(ImageFolder(root / "train"))


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_leads_back_ends_and_is_told(root, target):
    (root / "train/cat/loop").symlink_to(target)
    source = _open(root)
    assert len(source.train) == 4
    assert "1 linked folder that leads back to itself" in str(source.left_out)


def test_a_class_that_is_a_link_back_is_refused(root):
    (root / "train/loop").symlink_to("..")
    with pytest.raises(DataError, match="train/loop: a class folder without images, left out: 1 linked"):
        _open(root)


def test_a_fifo_with_an_images_name_is_refused_and_not_waited_for(root):
    import os

    os.mkfifo(root / "train/cat/x.png")
    sample = next(sample for sample in _open(root).train if sample.name.endswith("x.png"))
    with pytest.raises(DataError, match=r"x.png: not a readable image \(not a regular file\)"):
        sample.load()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_beside_test_is_the_validation_split(
    root, tmp_path, name, prepare_quietly, capsys
):
    _save(root / name / "cat/v.png", seed=5)
    source = _open(root)
    assert _names(source.validation) == [f"{name}/cat/v.png"]
    assert len(source.train) == 4
    folder = prepare_quietly(source, tmp_path / "prepared", validation=0.5)
    samples = json.loads((folder / "dataset.json").read_text())["samples"]
    assert samples == {"train": 4, "validation": 1, "test": 2}
    assert (
        "validation: 1 image from the source's own split; data.validation is not used"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_without_a_test_folder_it_is_the_test(root, name):
    (root / "test").rename(root / name)
    source = _open(root)
    assert source.validation is None
    assert _names(source.test) == [f"{name}/cat/0.png", f"{name}/dog/0.png"]


@pytest.mark.parametrize(("name", "meant"), [("Val", "val"), ("VALID", "valid"), ("training", "train")])
def test_a_folder_that_is_nearly_a_split_is_refused_with_the_name_to_give(root, name, meant):
    (root / name).mkdir()
    with pytest.raises(DataError, match=rf"found '{name}', .*rename '{name}' to '{meant}'"):
        _open(root)


def test_two_validation_folders_are_refused(root):
    (root / "val").mkdir()
    (root / "valid").mkdir()
    with pytest.raises(DataError, match="found 'val' and 'valid'; expected one validation split"):
        _open(root)


def test_a_class_that_only_the_validation_has_is_refused(root):
    _save(root / "val/fox/0.png")
    with pytest.raises(DataError, match=r"val/fox: this class is not in .*train"):
        _open(root)


def test_a_test_class_of_another_unicode_form_is_refused_with_both_spellings(root):
    (root / "train/cat").rename(root / "train/caf\u00e9")
    (root / "test/cat").rename(root / "test/cafe\u0301")
    with pytest.raises(
        DataError, match=r"'cafe\\u0301' and 'caf\\xe9' of .* differ only in Unicode normalisation"
    ):
        _open(root)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat", "cat"), "'cat' occurs twice"),
        (("cat", ""), "'' is empty"),
        (("cat", "\u2028"), "is empty"),
        (("cat", "do\x1b[31mg"), r"'do\\x1b\[31mg' has control characters"),
        (("caf\u00e9", "cafe\u0301"), "differ only in Unicode normalisation"),
        (("cat", "ca\u200bt"), "differ only in Unicode normalisation"),
        (("cat", "\u200b"), r"'\\u200b' is empty"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(names, words):
    with pytest.raises(DataError, match=words):
        require_class_names("x", names)


# Arrays


@pytest.fixture
def open_npz(tmp_path):
    """Write six training and three test images, with changes, and open them."""

    def run(**changed):
        images = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3)).astype(np.uint8)
        arrays = {"train_images": images[:6], "train_labels": np.array([0, 1, 2] * 2)}
        arrays |= {"test_images": images[6:9], "test_labels": np.array([2, 1, 0])}
        np.savez(tmp_path / "x.npz", **{**arrays, **changed})
        return open_source(f"npz:{tmp_path / 'x.npz'}", ImageOptions(root=tmp_path))

    return run


VALIDATION = np.full((3, 4, 5, 3), 7, np.uint8)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_arrays_are_the_validation_split(open_npz, name):
    source = open_npz(**{f"{name}_images": VALIDATION, f"{name}_labels": np.array([[0], [1], [2]])})
    assert [(sample.name, sample.label) for sample in source.validation] == [
        (f"{name}/{row}", row) for row in range(3)
    ]


def test_arrays_that_are_not_looked_at_are_told(open_npz):
    assert str(open_npz(masks=np.zeros(3)).left_out) == "not read: masks"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"val_images": VALIDATION}, "has no val_labels"),
        ({"val_images": VALIDATION, "val_labels": np.array([0, 1, -1])}, r"val_labels\[2\] is -1"),
        ({"val_images": VALIDATION[..., :1], "val_labels": np.arange(3)}, "differ in channels"),
        ({"val_images": VALIDATION, "val_labels": np.array([0, 1, 3])}, "occurs in val but has no"),
        ({"test_labels": np.array([0, 1, 3])}, "class '3' .* occurs in test but has no training sample"),
        ({"classes": np.array([b"a", b"\xff", b"c"])}, "not valid UTF-8"),
        ({"classes": np.array(3)}, r"classes is int64 \(\); expected strings \(C,\)"),
        ({"classes": np.array(["a", "b", "a"])}, "class name 'a' occurs twice"),
        ({"classes": np.array(["a", "b\n", "c"])}, "control characters"),
        ({"classes": np.array([[0.5]])}, "expected strings"),
    ],
)
def test_odd_arrays_are_refused_in_one_line(open_npz, changed, words):
    with pytest.raises(DataError, match=words) as info:
        open_npz(**changed)
    assert "\n" not in str(info.value)


def test_labels_that_begin_at_one_make_no_empty_class(open_npz, capsys):
    source = open_npz(train_labels=np.array([1, 2, 3] * 2), test_labels=np.array([3, -1, 1]))
    assert source.classes == ("1", "2", "3")
    assert [sample.label for sample in source.train] == [0, 1, 2] * 2
    assert [sample.label for sample in source.test] == [2, -1, 0]
    assert "labels start at 1: 3 classes, named 1 to 3" in capsys.readouterr().err


def test_classes_in_bytes_are_texts(open_npz):
    assert open_npz(classes=np.array(["caf\u00e9".encode(), b"b", b"c"])).classes == ("caf\u00e9", "b", "c")


def test_classes_without_any_image_are_told(open_npz, capsys):
    open_npz(classes=np.array(["a", "b", "c", "never"]))
    assert "1 class has no sample in any split: never" in capsys.readouterr().err


def test_classes_that_only_unlabelled_images_may_show_are_told(open_npz, capsys):
    source = open_npz(train_labels=np.array([1, 2, -1] * 2), test_labels=np.array([0, 1, 2]))
    assert source.classes == ("0", "1", "2")
    assert "1 class has no labelled training sample: 0" in capsys.readouterr().err


def test_a_single_array_is_refused_in_plain_words(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"a single array, as in an \.npy"):
        open_source(f"npz:{tmp_path / 'x.npy'}", ImageOptions(root=tmp_path))


def test_a_header_that_claims_more_than_memory_is_refused(tmp_path, open_npz):
    import io
    import zipfile

    open_npz()
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "x.npz") as old, zipfile.ZipFile(tmp_path / "y.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "train_images.npy" else old.read(name))
    with pytest.raises(DataError, match=r"y.npz: not a readable .npz"):
        open_source(f"npz:{tmp_path / 'y.npz'}", ImageOptions(root=tmp_path))
