"""Sources: what is found, and one clear line for each way in which it can be wrong."""

from __future__ import annotations

import os
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import ConfigError, DataError
from pipeline.modalities.images.decoding import DECODER, SUFFIXES
from pipeline.modalities.images.sources import ImageOptions, open_source
from pipeline.modalities.images.sources.arrays import load_subset
from pipeline.modalities.prepared import PreparedData

CLASSES = ("cat", "dog")


# Names


@pytest.mark.parametrize("name", ["fashon-mnist-10k", "fashion-mnist-10", "npzz:x", "foldr:x", ""])
def test_an_unknown_source_is_refused_with_what_is_expected(tmp_path, name):
    expected = (
        r"expected fashion-mnist-10k, npz:PATH, folder:PATH, torchvision:NAME, wds:PATTERN, "
        r"parquet:PATTERN, hf:FOLDER, csv:PATTERN or your own module:callable"
    )
    with pytest.raises(ConfigError, match=expected):
        open_source(name, ImageOptions(root=tmp_path))


def test_a_mistyped_source_gets_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'torchvision'\?"):
        open_source("torchvison:CIFAR10", ImageOptions(root=tmp_path))


def test_the_builtin_source_takes_no_text(tmp_path):
    with pytest.raises(ConfigError, match="expected nothing after the name"):
        open_source("fashion-mnist-10k:train", ImageOptions(root=tmp_path))


# One's own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that writes a module of one's own and opens its `photos` as a source."""

    def open_own(code: str, name: str):
        (tmp_path / f"{name}.py").write_text(HEAD + code)
        monkeypatch.chdir(tmp_path)
        return open_source(f"{name}:photos", ImageOptions(channels=1))

    return open_own


HEAD = """
import numpy as np
from pipeline.modalities.images.form import ImageSource
from pipeline.samples.samples import Sample

def samples(split, value=np.uint8):
    return [Sample(f"{split}/{n}", n % 2, lambda n=n: np.full((8, 8, 1), n, value)) for n in range(6)]
"""


def test_a_source_may_be_ones_own_code(own, prepare_quietly, tmp_path):
    source = own(
        "def photos(options):\n"
        "    return ImageSource(classes=('a', 'b'), channels=options.channels,\n"
        "                       train=samples('train'), test=samples('test'))\n",
        "albums",
    )
    data = PreparedData.open(prepare_quietly(source, tmp_path / "prepared", validation=0))
    assert data.train.array(5).max() == 5
    assert tuple(data.train.names)[:2] == ("train/0", "train/1")


def test_a_source_of_ones_own_that_gives_something_else_is_refused(own, prepare_quietly, tmp_path):
    with pytest.raises(ConfigError, match="source notes:photos returns a int; expected a pipeline"):
        own("def photos():\n    return 3\n", "notes")
    source = own(
        "def photos():\n"
        "    return ImageSource(classes=('a', 'b'), channels=1,\n"
        "                       train=samples('train', np.float32), test=samples('test'))\n",
        "films",
    )
    with pytest.raises(DataError, match=r"6 of 12 images cannot be read: train/0"):
        prepare_quietly(source, tmp_path / "prepared", validation=0)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("classes=('a', 'a')", "class name 'a' occurs twice"),
        ("classes=('a', '')", "class name '' is empty"),
        ("classes=(0, 1)", r"its classes are \(0, 1\); expected a tuple of str"),
        ("classes='ab'", "its classes are 'ab'; expected a tuple of str"),
        ("classes=None", "its classes are None; expected a tuple of str"),
        ("classes=('a',)", "has 1 class; expected at least two"),
        ("train=[]", "has no training images"),
        ("train=(s for s in samples('train'))", "a split is <generator.*; expected a sequence of samples"),
        ("train=[('x', 0)]", r"a sample is \('x', 0\); expected a pipeline.samples.*Sample"),
        ("train=samples('train') + [3]", "a sample is 3; expected a pipeline.samples.*Sample"),
        ("test=samples('test') + [Sample(7, 0, None)]", "expected .* with a str as its name"),
        ("validation=[None]", "a sample is None; expected a pipeline.samples.*Sample"),
        ("train=[Sample('x', [0, [1]], None)]", "its labels are .*, and task classes takes one class"),
    ],
)
def test_a_malformed_source_of_ones_own_is_refused(own, prepare_quietly, tmp_path, changed, expected):
    code = (
        "def photos():\n"
        "    given = dict(classes=('a', 'b'), train=samples('train'), test=samples('test'))\n"
        f"    return ImageSource(channels=1, **(given | dict({changed})))\n"
    )

    def read() -> None:
        source = own(code, f"malformed_{zlib.crc32(code.encode())}")
        prepare_quietly(source, tmp_path / "prepared", validation=0)

    with pytest.raises(DataError, match=expected):
        read()


# Arrays


def _arrays(**changed) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (6, 4, 5, 3)).astype(np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8),
        "test_labels": np.array([2, 1, 0]),
    }
    return {name: a for name, a in {**arrays, **changed}.items() if a is not None}


@pytest.fixture
def open_npz(tmp_path):
    """Write arrays (the good ones with changes) to x.npz and open them as a source."""

    def run(**changed):
        np.savez(tmp_path / "x.npz", **_arrays(**changed))
        return open_source(f"npz:{tmp_path / 'x.npz'}", ImageOptions(root=tmp_path))

    return run


def test_npz_samples_are_the_arrays_rows(open_npz):
    source, arrays = open_npz(), _arrays()
    assert source.classes == ("0", "1", "2")
    assert source.channels == 3
    assert [sample.name for sample in source.train] == [f"train/{row}" for row in range(6)]
    assert [sample.label for sample in source.test] == [2, 1, 0]
    for split in ("train", "test"):
        loaded = np.stack([sample.load() for sample in getattr(source, split)])
        assert np.array_equal(loaded, arrays[f"{split}_images"])


def test_npz_grey_images_may_have_three_dimensions(open_npz):
    arrays = _arrays()
    source = open_npz(
        train_images=arrays["train_images"][..., 0], test_images=arrays["test_images"][..., :1]
    )
    assert source.channels == 1
    assert source.train[0].load().shape == (4, 5, 1)


def test_npz_may_name_its_classes(open_npz):
    assert open_npz(classes=np.array(["x", "y", "z", "never"])).classes == ("x", "y", "z", "never")


def test_npz_may_hold_unlabelled_samples(open_npz):
    source = open_npz(train_labels=np.array([0, 1, 2, -1, -1, -1]))
    assert [sample.label for sample in source.train] == [0, 1, 2, -1, -1, -1]


def test_npz_without_any_label_needs_the_names_of_its_classes(open_npz):
    unlabelled = {"train_labels": np.full(6, -1), "test_labels": np.full(3, -1)}
    with pytest.raises(DataError, match="at least two"):
        open_npz(**unlabelled)
    assert open_npz(**unlabelled, classes=np.array(["a", "b"])).classes == ("a", "b")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, ">i2"])
def test_npz_labels_may_be_any_integers(open_npz, dtype):
    source = open_npz(train_labels=np.array([0, 1, 2, 0, 1, 2], dtype))
    assert [sample.label for sample in source.train] == [0, 1, 2, 0, 1, 2]


def test_npz_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.npz: no such file"):
        open_source(f"npz:{tmp_path / 'none.npz'}", ImageOptions(root=tmp_path))


def test_npz_with_other_keys_lists_what_it_has_and_what_to_add(open_npz):
    with pytest.raises(DataError, match=r"x.npz: contains arrays \['images', .* add train_images"):
        open_npz(train_images=None, images=np.zeros(3))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((6, 4, 5, 3), np.float32),
        np.zeros((6, 4, 5, 3), np.int64),
        np.zeros((6, 4, 5, 2), np.uint8),
        np.zeros((6, 3, 4, 5), np.uint8),
        np.zeros((6, 4), np.uint8),
        np.zeros((6, 4, 5, 3, 1), np.uint8),
    ],
    ids=["float", "int64", "two-channels", "channels-first", "flat", "five-dimensions"],
)
def test_npz_images_of_another_form_are_refused_with_what_was_found(open_npz, images):
    found = rf"train_images is {images.dtype} \({images.shape[0]}, .*expected uint8 \(N, H, W, C\)"
    with pytest.raises(DataError, match=found):
        open_npz(train_images=images)


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros(6, bool),
        np.zeros((6, 2, 1), int),
        np.zeros((6, 0), int),
        np.zeros(5, int),
        np.array(["a"] * 6),
    ],
    ids=["bool", "three-axes", "no-columns", "too-few", "text"],
)
def test_npz_labels_of_another_form_are_refused_with_what_was_found(open_npz, labels):
    with pytest.raises(DataError, match=r"x.npz: train_labels is .*expected integers \(6,\)"):
        open_npz(train_labels=labels)


@pytest.mark.parametrize(
    ("train", "test", "kept"),
    [
        (np.eye(6, 2, dtype=bool), np.ones((3, 2), np.int64), np.eye(6, 2, dtype=np.int8)),
        (np.arange(6.0), np.ones((3, 1)), np.arange(6, dtype=np.float32)[:, None]),
        (np.arange(12.0).reshape(6, 2), np.ones((3, 2)), np.arange(12, dtype=np.float32).reshape(6, 2)),
    ],
    ids=["tags", "a-number", "numbers"],
)
def test_npz_of_tags_or_numbers(open_npz, train, test, kept):
    found = open_npz(train_labels=train, test_labels=test)
    assert found.classes == tuple(map(str, range(kept.shape[1])))
    labels = np.stack([sample.label for sample in found.train])
    assert labels.dtype == kept.dtype
    np.testing.assert_array_equal(labels, kept)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (np.full((6, 2), 2), np.ones((3, 2), int), r"train_labels\[0, 0\] is 2; expected 1, 0, or -1"),
        (np.full(6, np.nan), np.ones(3), r"train_labels\[0\] is nan; expected a finite number"),
        (np.eye(6, 2, dtype=int), np.ones((3, 3), int), r"test_labels has 3 values .* expected 2"),
        (np.arange(6.0), np.arange(3), "train_labels is numbers and test_labels is index"),
    ],
    ids=["range", "nan", "width", "kinds"],
)
def test_npz_of_wrong_tags_or_numbers_is_refused(open_npz, train, test, said):
    with pytest.raises(DataError, match=said):
        open_npz(train_labels=train, test_labels=test)


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (6, 0, 5, 3)])
def test_npz_without_pixels_is_refused(open_npz, shape):
    with pytest.raises(DataError, match="train_images is empty"):
        open_npz(train_images=np.zeros(shape, np.uint8), train_labels=np.zeros(shape[0], np.int64))


def test_npz_splits_of_different_channels_are_refused(open_npz):
    with pytest.raises(DataError, match="differ in channels"):
        open_npz(test_images=np.zeros((3, 4, 5, 1), np.uint8))


def test_npz_label_below_minus_one_is_named_with_its_row(open_npz):
    with pytest.raises(DataError, match=r"train_labels\[4\] is -2; expected 0 or more, or -1"):
        open_npz(train_labels=np.array([0, 1, 2, 0, -2, 2]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_npz_label_above_the_named_classes_is_out_of_range(open_npz, split):
    labels = _arrays()[f"{split}_labels"]
    labels[1] = 3
    with pytest.raises(DataError, match=r"label 3 is out of range; expected -1 to 2"):
        open_npz(**{f"{split}_labels": labels}, classes=np.array(["x", "y", "z"]))


def test_npz_label_far_above_the_number_of_images_is_out_of_range(open_npz):
    """A stray fill value must not become a model of a million classes."""
    with pytest.raises(DataError, match=r"label 1000000 is out of range"):
        open_npz(train_labels=np.array([0, 1, 2, 0, 1, 1_000_000]))


def test_npz_of_one_class_is_refused(open_npz):
    with pytest.raises(DataError, match=r"1 class; expected at least two"):
        open_npz(train_labels=np.zeros(6, int), test_labels=np.zeros(3, int))


def test_npz_with_objects_is_refused_without_unpickling_them(open_npz):
    with pytest.raises(DataError, match=r"x.npz: train_labels contains Python objects; expected numbers"):
        open_npz(train_labels=np.array([0, 1, None] * 2, object))


def test_npz_images_with_channels_ahead_are_told_how_to_convert_them(open_npz):
    with pytest.raises(
        DataError, match=r"with C 1 or 3; convert it, e.g. with np.moveaxis\(images, 1, 3\)"
    ):
        open_npz(train_images=np.zeros((6, 3, 4, 5), np.uint8))


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x.npz: not a readable .npz"):
        open_source(f"npz:{tmp_path / 'x.npz'}", ImageOptions(root=tmp_path))


def test_a_single_array_under_the_name_of_an_npz_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"x.npz: not a readable .npz"):
        open_source(f"npz:{tmp_path / 'x.npz'}", ImageOptions(root=tmp_path))


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_an_npz_with_damaged_bytes_is_refused(tmp_path, share):
    path = tmp_path / "x.npz"
    smooth = np.arange(6 * 40 * 50 * 3, dtype=np.uint32).reshape(6, 40, 50, 3) // 100
    np.savez_compressed(path, **_arrays(train_images=smooth.astype(np.uint8)))
    content = bytearray(path.read_bytes())
    start = int(len(content) * share)
    content[start : start + 40] = bytes(byte ^ 0xFF for byte in content[start : start + 40])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.npz: not a readable .npz"):
        open_source(f"npz:{path}", ImageOptions(root=tmp_path))


# Folders


def _noise(height=12, width=10, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """train/{cat,dog}/{0,1}.png and test/{cat,dog}/0.png, each of another size."""
    root = tmp_path / "images"
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for row in range(count):
                image = _noise(10 + row, 8 + label, seed=2 * row + label)
                image.save(root / split / name / f"{row}.png")
    return root


def _open(folder, channels=3):
    return open_source(f"folder:{folder}", ImageOptions(root=folder, channels=channels))


def _loaded(folder, name, channels=3):
    """The pixels of train/cat/NAME."""
    samples = {sample.name: sample for sample in _open(folder, channels).train}
    return samples[f"train/cat/{name}"].load()


def test_folder_samples_are_named_by_relative_path_and_labelled_by_class(folder):
    source = _open(folder)
    assert source.classes == CLASSES
    assert [(sample.name, sample.label) for sample in source.train] == [
        ("train/cat/0.png", 0),
        ("train/cat/1.png", 0),
        ("train/dog/0.png", 1),
        ("train/dog/1.png", 1),
    ]
    assert [sample.name for sample in source.test] == ["test/cat/0.png", "test/dog/0.png"]


def test_folder_may_call_its_test_images_val(folder):
    (folder / "test").rename(folder / "val")
    assert [sample.name for sample in _open(folder).test] == ["val/cat/0.png", "val/dog/0.png"]


def test_folder_may_nest_images_below_their_class(folder):
    (folder / "train/cat/more/deep").mkdir(parents=True)
    shutil.move(folder / "train/cat/0.png", folder / "train/cat/more/deep/0.png")
    nested = [s for s in _open(folder).train if s.name == "train/cat/more/deep/0.png"]
    assert [sample.label for sample in nested] == [0]


def test_folder_passes_over_files_that_are_no_images(folder):
    (folder / "train/cat/notes.txt").write_text("not an image")
    (folder / "train/README.md").write_text("not a class")
    assert len(_open(folder).train) == 4


def test_folder_png_pixels_are_exact(folder):
    assert np.array_equal(_loaded(folder, "1.png"), np.asarray(_noise(11, 8, seed=2)))


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG", ".PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_that_is_named_is_decoded_to_the_wanted_channels(folder, suffix, channels):
    _noise(20, 30).save(folder / f"train/cat/x{suffix}")
    pixels = _loaded(folder, f"x{suffix}", channels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (20, 30, channels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_png_is_decoded_to_bytes(folder, mode, channels):
    if mode == "I;16":
        image = Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16))
    else:
        image = _noise(20, 30).convert(mode)
    image.save(folder / "train/cat/x.png")
    pixels = _loaded(folder, "x.png", channels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (20, 30, channels))


def test_a_cmyk_jpeg_is_decoded(folder):
    _noise(20, 30).convert("CMYK").save(folder / "train/cat/x.jpg")
    assert _loaded(folder, "x.jpg").shape == (20, 30, 3)


def test_jpeg_pixels_are_close_to_the_image(folder):
    smooth = Image.fromarray(np.tile(np.arange(0, 240, 4, np.uint8)[None, :, None], (40, 1, 3)))
    smooth.save(folder / "train/cat/x.jpg", quality=95)
    difference = _loaded(folder, "x.jpg").astype(int) - np.asarray(smooth)
    assert np.abs(difference).max() < 12


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(folder, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    image = Image.fromarray(np.zeros((20, 32, 3), np.uint8))
    image.paste((255, 255, 255), (0, 0, 8, 20))  # a white bar at the left is one at the top
    image.save(folder / f"train/cat/x.{suffix}", exif=exif)
    pixels = _loaded(folder, f"x.{suffix}")
    assert pixels.shape == (32, 20, 3)
    assert pixels[:7].min() > 200
    assert pixels[9:].max() < 50


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animated_gif_is_its_first_frame(folder, channels):
    black, white = (Image.new("RGB", (10, 12), colour) for colour in ("black", "white"))
    black.save(folder / "train/cat/x.gif", save_all=True, append_images=[white])
    pixels = _loaded(folder, "x.gif", channels)
    assert pixels.shape == (12, 10, channels)
    assert not pixels.any()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
@pytest.mark.parametrize("kept_bytes", [0, 4, 300])
def test_a_truncated_image_is_refused_by_name(folder, suffix, kept_bytes):
    path = folder / f"train/cat/x.{suffix}"
    _noise(40, 40).save(path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=rf"cat/x.{suffix}: not a readable image \({kept_bytes} byt"):
        _loaded(folder, f"x.{suffix}")


def test_a_jpeg_that_lacks_its_end_is_refused(folder):
    path = folder / "train/cat/x.jpg"
    _noise(60, 60).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cat/x.jpg: not a readable image"):
        _loaded(folder, "x.jpg")


def test_text_under_the_name_of_an_image_is_refused(folder):
    (folder / "train/cat/x.jpg").write_text("this is not a picture")
    with pytest.raises(DataError, match=r"cat/x.jpg: not a readable image .* replace or remove"):
        _loaded(folder, "x.jpg")


def test_an_image_that_vanished_is_refused_by_name(folder):
    sample = _open(folder).train[0]
    (folder / sample.name).unlink()
    with pytest.raises(DataError, match=r"train/cat/0.png"):
        sample.load()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_jpeg_of_different_sizes_are_prepared(folder, tmp_path, prepare_quietly, channels):
    _noise(33, 17).save(folder / "train/cat/x.jpg")
    prepared = prepare_quietly(_open(folder, channels), tmp_path / "prepared", validation=0)
    train = PreparedData.open(prepared).train
    row = train.names.index("train/cat/x.jpg")
    assert train.array(row).shape == (33, 17, channels)
    assert train.uniform is None
    assert len(train) == 5


def test_a_name_that_is_not_utf8_is_refused_by_name(folder):
    shutil.copy(folder / "train/cat/0.png", os.fsencode(folder) + b"/train/cat/caf\xe9.png")
    with pytest.raises(DataError, match=r"train/cat/caf.*not valid UTF-8"):
        _open(folder)


def test_a_name_with_a_line_break_is_refused_by_name(folder):
    (folder / "train/cat/0.png").rename(folder / "train/cat/a\nb.png")
    with pytest.raises(DataError, match=r"train/cat/a\\nb.png.*a line break"):
        _open(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none: no such folder; expected PATH/train/CLASS"):
        _open(tmp_path / "none")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_without_a_split_says_what_it_has(folder, split):
    shutil.rmtree(folder / split)
    with pytest.raises(DataError, match=r"images: has the folders \['\w+'\]; expected train/CLASS"):
        _open(folder)


@pytest.fixture
def classes_alone(folder, tmp_path):
    """Class folders without splits: {cat,dog}/*.png, twelve of each."""
    root = tmp_path / "alone"
    for name in CLASSES:
        (root / name / "deep").mkdir(parents=True)
        file = next((folder / "train" / name).glob("*.png"))
        for number in range(12):
            shutil.copy(file, root / name / ("deep" if number % 2 else ".") / f"{number}.png")
    return root


def test_class_folders_alone_are_a_dataset_with_a_drawn_test(classes_alone, capsys):
    source = _open(classes_alone)
    assert source.classes == CLASSES
    assert source.validation is None
    names = [{sample.name for sample in split} for split in (source.train, source.test)]
    assert names[0] | names[1] == {
        str(path.relative_to(classes_alone)) for path in classes_alone.rglob("*.png")
    }
    assert not names[0] & names[1]
    for sample in (*source.train, *source.test):
        assert source.classes[sample.label] == sample.name.partition("/")[0]
        assert sample.file == str(classes_alone / sample.name)
    told = capsys.readouterr().err
    assert f"no test split; {len(source.test)} of {len(source.train) + len(source.test)} images (" in told
    assert [sample.name for sample in _open(classes_alone).test] == [s.name for s in source.test]


def test_of_class_folders_alone_one_may_be_unlabelled_and_files_loose(classes_alone):
    (classes_alone / "unlabelled").mkdir()
    shutil.copy(classes_alone / "cat/0.png", classes_alone / "unlabelled/0.png")
    shutil.copy(classes_alone / "cat/0.png", classes_alone / "0.png")
    source = _open(classes_alone)
    assert source.classes == CLASSES
    assert [s.label for s in source.train if s.name.startswith("unlabelled")] == [-1]
    assert str(source.left_out) == "1 loose in alone/"


def test_an_empty_folder_among_class_folders_is_refused(classes_alone):
    (classes_alone / "emu").mkdir()
    with pytest.raises(DataError, match=r"alone/emu: a class folder without images; add images"):
        _open(classes_alone)


@pytest.mark.parametrize("name", ["val", "test"])
def test_class_folders_beside_a_split_are_no_dataset(classes_alone, name):
    shutil.copytree(classes_alone / "cat", classes_alone / name / "cat")
    with pytest.raises(DataError, match=r"has the folders \['cat', 'dog', '\w+'\]; expected train/CLASS"):
        _open(classes_alone)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_refused(folder, split):
    for path in (folder / split).rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match=rf"images/{split}: no image files in class folders"):
        _open(folder)


def test_images_outside_class_folders_are_not_images(folder):
    for name in CLASSES:
        shutil.rmtree(folder / f"train/{name}")
    _noise().save(folder / "train/cat.png")
    shutil.rmtree(folder / "test/cat")
    shutil.rmtree(folder / "test/dog")
    with pytest.raises(DataError, match=r"images/train: no image files in class folders"):
        _open(folder)


def test_a_folder_of_one_class_is_refused(folder):
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "dog")
    with pytest.raises(DataError, match=r"1 class; expected at least two"):
        _open(folder)


def test_a_class_that_only_the_test_has_is_refused_by_name(folder):
    (folder / "test/dog").rename(folder / "test/fox")
    with pytest.raises(DataError, match=r"test/fox: this class is not in .*train"):
        _open(folder)


def test_a_class_without_test_images_is_accepted_and_told(folder, prepare_quietly, tmp_path, capsys):
    shutil.rmtree(folder / "test/dog")
    assert _open(folder).classes == CLASSES
    prepare_quietly(_open(folder), tmp_path / "prepared", validation=0)
    assert "test: 1 class has no image: dog\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_a_folder_of_no_class_holds_unlabelled_samples(folder, name):
    (folder / f"train/{name}/from/elsewhere").mkdir(parents=True)
    _noise().save(folder / f"train/{name}/0.png")
    _noise().save(folder / f"train/{name}/from/elsewhere/1.png")
    source = _open(folder)
    assert source.classes == CLASSES
    assert [(sample.name, sample.label) for sample in source.train if sample.label == -1] == [
        (f"train/{name}/0.png", -1),
        (f"train/{name}/from/elsewhere/1.png", -1),
    ]
    assert [sample.label for sample in source.train if sample.label != -1] == [0, 0, 1, 1]


def test_unlabelled_images_need_not_be_there_and_are_no_class_of_their_own(folder):
    (folder / "train/unlabelled").mkdir()
    assert len(_open(folder).train) == 4
    shutil.rmtree(folder / "train/dog")
    shutil.rmtree(folder / "test/dog")
    _noise().save(folder / "train/unlabelled/0.png")
    with pytest.raises(DataError, match=r"1 class; expected at least two"):
        _open(folder)


def test_unlabelled_images_are_refused_among_those_to_test_on(folder):
    (folder / "test/unlabelled").mkdir()
    with pytest.raises(DataError, match=r"test/unlabelled: unlabelled images.* move it to .*images/train"):
        _open(folder)


# torchvision


@pytest.fixture
def raw_fashion_mnist(tmp_path):
    """A root with a small FashionMNIST as torchvision keeps it; returns root and images."""
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for part, count in (("train", 20), ("t10k", 10)):
        images[part] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        _write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        _write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path, images


def _write_idx(path, array):
    sizes = np.array(array.shape, ">u4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_a_torchvision_dataset_is_read_from_its_own_files(raw_fashion_mnist):
    root, images = raw_fashion_mnist
    source = open_source("torchvision:FashionMNIST", ImageOptions(root=root))
    assert source.channels == 1
    assert len(source.classes) == 10
    assert [sample.label for sample in source.train] == [row % 10 for row in range(20)]
    assert np.array_equal(np.stack([sample.load()[..., 0] for sample in source.train]), images["train"])
    assert np.array_equal(np.stack([sample.load()[..., 0] for sample in source.test]), images["t10k"])


def test_a_sample_has_the_same_name_and_classes_in_the_builtin_subset(raw_fashion_mnist):
    """So that logits of the subset are found again when the whole dataset is used."""
    root, _ = raw_fashion_mnist
    whole = open_source("torchvision:FashionMNIST", ImageOptions(root=root))
    subset = open_source("fashion-mnist-10k", ImageOptions(root=root))
    position = int(load_subset()["train_positions"][0])
    assert subset.train[0].name == whole.train[position].name
    assert subset.classes == whole.classes


def test_an_unknown_torchvision_dataset_gets_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"'FashionMNST'.*did you mean 'FashionMNIST'\?"):
        open_source("torchvision:FashionMNST", ImageOptions(root=tmp_path))


@pytest.mark.parametrize("name", ["", "utils", "os", "VisionDatasetX"])
def test_what_is_no_dataset_of_torchvision_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected a class of torchvision.datasets"):
        open_source(f"torchvision:{name}", ImageOptions(root=tmp_path))


def test_a_name_in_other_letters_gets_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"'Cifar10'.*did you mean 'CIFAR10'\?"):
        open_source("torchvision:Cifar10", ImageOptions(root=tmp_path))


@pytest.fixture
def country211(tmp_path):
    """Country211 as torchvision keeps it, two classes, each file turned by its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        for label, name in enumerate(("AD", "AE")):
            folder = tmp_path / "country211" / split / name
            folder.mkdir(parents=True)
            for row in range(count):
                image = _noise(20, 32, seed=10 * row + label)
                image.save(folder / f"{row}.jpg", exif=exif, quality=98, subsampling=0)
    return tmp_path


def test_a_validation_split_of_torchvision_is_used(country211):
    source = open_source("torchvision:Country211", ImageOptions(root=country211))
    assert [sample.name for sample in source.validation] == [f"valid/{row}" for row in range(4)]
    assert (len(source.train), len(source.test)) == (6, 2)
    assert not source.left_out.unused


def test_a_validation_split_that_cannot_be_opened_is_told(country211):
    shutil.rmtree(country211 / "country211/valid")
    source = open_source("torchvision:Country211", ImageOptions(root=country211))
    assert source.validation is None
    assert "not read: the split valid (" in str(source.left_out)


def test_torchvision_and_folders_turn_a_file_alike(country211):
    by_torchvision = open_source("torchvision:Country211", ImageOptions(root=country211))
    folder = open_source(f"folder:{country211 / 'country211'}", ImageOptions(root=country211))
    for one, other in zip(by_torchvision.train, folder.train, strict=True):
        assert one.load().shape == other.load().shape == (32, 20, 3)
        assert np.abs(one.load().astype(int) - other.load()).max() <= 4


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_file_of_torchvision_is_named(country211, content):
    source = open_source("torchvision:Country211", ImageOptions(root=country211))
    (country211 / "country211/train/AD/1.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"train/AD/1.jpg: not a readable image \(") as info:
        source.train[1].load()
    assert "\n" not in str(info.value)


def test_files_of_torchvision_are_those_of_a_folder(country211):
    """Bounded, remarked on and resumed alike, whatever the dataset's own loader does."""
    deep = country211 / "country211/train/AD/0.jpg"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, format="png")
    options = ImageOptions(root=country211, max_pixels=100)
    source = open_source("torchvision:Country211", options)
    assert (source.decoder, source.channels) == (DECODER, 3)
    assert source.train[0].file == str(deep)
    assert np.unique(source.train[0].load()).tolist() == [40_000 >> 8]
    with pytest.raises(
        DataError, match=r"1.jpg: 32x20 pixels, according to its header.*raise data.max_pixels"
    ):
        source.train[1].load()


def test_images_that_a_dataset_decodes_itself_are_bounded_too(raw_fashion_mnist):
    source = open_source("torchvision:FashionMNIST", ImageOptions(root=raw_fashion_mnist[0], max_pixels=99))
    assert source.decoder.startswith("pillow")
    with pytest.raises(DataError, match="image train/0 has 28x28 pixels; expected at most 99"):
        source.train[0].load()


def test_further_splits_of_torchvision_are_told(tmp_path, monkeypatch):
    class SVHN:
        def __init__(self, root, split, download):
            if split not in ("train", "test"):
                raise ValueError(split)
            self.labels, self.images = np.array([0, 1]), [Image.new("RGB", (4, 4))] * 2

        def __len__(self):
            return 2

        def __getitem__(self, row):
            return self.images[row], self.labels[row]

    monkeypatch.setattr("torchvision.datasets.SVHN", SVHN)
    source = open_source("torchvision:SVHN", ImageOptions(root=tmp_path))
    assert str(source.left_out) == "not read: the split extra"
    assert [sample.label for sample in source.train] == [0, 1]


@pytest.mark.parametrize("name", ["Caltech101", "EMNIST", "FakeData", "ImageFolder"])
def test_a_dataset_without_train_and_test_is_told_from_missing_files(tmp_path, name, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", lambda *a, **k: 1 / 0)
    with pytest.raises(DataError, match=rf"{name}: no train and test split with one class per image"):
        open_source(f"torchvision:{name}", ImageOptions(root=tmp_path))


@pytest.mark.parametrize("name", ["ImageFolder", "FakeData", "Country211"])
def test_a_torchvision_dataset_that_cannot_be_opened_says_why(tmp_path, name):
    if name == "Country211":  # it has train, valid and test: no network is asked
        (tmp_path / "country211").mkdir()
    with pytest.raises(DataError, match=rf"torchvision dataset {name}( in|: no train and test split)"):
        open_source(f"torchvision:{name}", ImageOptions(root=tmp_path))
