"""`pipeline export`: a checkpoint as one file, which runs without the project."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from pipeline.core.trust import Trust
from pipeline.export import formats
from pipeline.modalities.images.decoding import load_image
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from tests.documents import ROOT, block_with
from tests.stages.conftest import run

DOCUMENT = ROOT / "pipeline/export/README.md"
TEACHER = Path("models/teachers/tutor.pt")


def test_onnx_runs_on_the_test_images_with_the_networks_logits(project, capsys):
    out = Path("deploy/tutor.onnx")
    assert run("export", "teacher-tutor", "--format", "onnx", "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{out}: {out.stat().st_size:,} bytes, onnx of resnet8, 4 outputs")
    assert re.match(
        r"40 samples in batches of 1, 3, 4, 32: logits differ by .* top-1 agreement 1\.0000", printed[1]
    )
    assert [path.name for path in out.parent.iterdir()] == [out.name]

    network, card = load_checkpoint(TEACHER)
    images, _ = PreparedData.open(Path("data/prepared")).test.uniform
    normalised = card.preprocessing.normalise(torch.from_numpy(images.copy())).contiguous()
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": normalised.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, network(normalised).numpy(), atol=1e-3)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_pt2_with_normalisation_takes_pixels(project):
    out = Path("tutor.pt2")
    assert run("export", TEACHER, "--format", "pt2", "--out", out, "--with-normalise") == 0
    network, card = load_checkpoint(TEACHER)
    pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    extra = {"input.json": ""}
    with torch.no_grad():
        logits = torch.export.load(out, extra_files=extra).module()(pixels)
        assert torch.allclose(logits, network(card.preprocessing.normalise(pixels)), atol=1e-4)
    assert json.loads(extra["input.json"])["layout"] == "NHWC"


def test_a_file_that_computes_something_else_is_not_written(project, capsys, monkeypatch):
    out = Path("tutor.pt2")
    out.write_bytes(b"what was there before")
    right = formats.FORMATS["pt2"]
    wrong = formats.Format(right.encode, lambda content: lambda images: right.load(content)(images) * 1.1)
    monkeypatch.setitem(formats.FORMATS, "pt2", wrong)
    arguments = ["export", TEACHER, "--format", "pt2", "--out", out]
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pipeline: the exported network computes different logits: 40 samples")
    assert out.read_bytes() == b"what was there before"
    assert run(*arguments, "--threshold", 0.2) == 0
    assert out.stat().st_size > 1e5


def test_other_images_can_be_compared_on(project, capsys):
    for n in range(3):
        Path("photos/some").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (20 + n, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"photos/some/{n}.png")
    shutil.rmtree("data/prepared")
    arguments = ["export", TEACHER, "--format", "pt2", "--out", "tutor.pt2"]
    assert run(*arguments) == 1
    assert "pipeline prepare; or compare on a folder of files: --images FOLDER" in capsys.readouterr().err
    assert run(*arguments, "--images", "photos", "--samples", 2) == 0
    assert "2 samples in batches of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "out", "words"),
    [
        ("models/teachers/nobody.pt", "x.pt2", "models/teachers/nobody.pt: no such file"),
        ("teacher-tuter", "x.pt2", "no run 'teacher-tuter' in models/; expected the file of a checkpoint"),
        ("teacher-tuter", "x.pt2", "or one of teacher-tutor; did you mean 'teacher-tutor'?"),
        (TEACHER, TEACHER, "is the checkpoint itself or its card"),
        (TEACHER, TEACHER.with_suffix(".json"), "is the checkpoint itself or its card"),
    ],
)
def test_what_cannot_be_exported_is_one_line(project, capsys, checkpoint, out, words):
    before = TEACHER.read_bytes()
    assert run("export", checkpoint, "--format", "pt2", "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert TEACHER.read_bytes() == before


SIDES = """
import torch
from torch import nn

class Sides(nn.Module):
    # Which side of the image is brighter: class 0 the left one, class 1 the top one.
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.head.weight)
    def forward(self, images):
        half = images.shape[2] // 2
        left = images[:, :, :, :half].mean((1, 2, 3)) - images[:, :, :, half:].mean((1, 2, 3))
        top = images[:, :, :half].mean((1, 2, 3)) - images[:, :, half:].mean((1, 2, 3))
        return self.head(torch.stack([left, top], 1))
"""
# How a turned camera stores what it sees, by EXIF's number.
STORED = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture
def sides(project, monkeypatch) -> Iterator[Path]:
    """A checkpoint of one's own code in the working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("sides.py").write_text(SIDES)
    architecture = Architecture(name="sides:Sides", num_classes=2)
    preprocessing = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=("left", "top"))
    save_checkpoint(Path("sides.pt"), build(architecture).state_dict(), card)
    yield Path("sides.pt")
    sys.modules.pop("sides", None)


def _photograph(bright: str, orientation: int) -> Path:
    """Write a picture that is bright on one side when it is upright."""
    pixels = np.full((40, 48, 3), 60, np.uint8)
    pixels[(slice(None), slice(24)) if bright == "left" else slice(20)] = 200
    image, turn, exif = Image.fromarray(pixels), STORED[orientation], Image.Exif()
    exif[0x0112] = orientation
    stored = image if turn is None else image.transpose(turn)
    stored.save(f"{bright}.jpg", exif=exif, quality=95)
    return Path(f"{bright}.jpg")


@pytest.mark.parametrize("orientation", STORED)
def test_the_readmes_deployment_sees_photographs_upright_as_training_does(sides, orientation):
    code = block_with(DOCUMENT, "import onnxruntime")
    export = ["export", sides, "--format", "onnx", "--out", "student.onnx"]
    assert run(*export, "--trust-code", "sides:Sides") == 0
    network, card = load_checkpoint(sides, trust=Trust(code=frozenset({"sides"})))
    for bright in card.classes:
        path = _photograph(bright, orientation)
        names: dict[str, object] = {}
        exec(code.replace("photo.jpg", str(path)), names)
        assert names["given"]["orientation"] == "exif"
        assert names["name"] == bright
        seen = torch.from_numpy(load_image(path, 3)[:, 4:44].copy())[None].permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(seen, (16, 16), mode="bilinear", antialias=True)
        with torch.no_grad():
            logits = network(card.preprocessing.normalise(small.permute(0, 2, 3, 1)))[0]
        assert np.allclose(names["logits"], logits.numpy(), atol=0.05)


def test_a_card_runs_no_code_that_the_command_line_does_not_name(sides, capsys):
    sys.modules.pop("sides", None)
    export = ["export", sides, "--format", "pt2", "--out", "x.pt2"]
    for named in ([], ["--trust-code", "side"], ["--trust-code", "sides:Other"]):
        capsys.readouterr()
        assert run(*export, *named) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "sides.json: asks to run code, 'sides:Sides'; a card alone runs no code" in line
        assert line.endswith("add --trust-code sides:Sides")
        assert "sides" not in sys.modules
    assert run(*export, "--trust-code", "sides") == 0
    assert run(*export, "--trust-code", "sides; ls") == 2


def test_a_downloaded_card_calls_nothing_of_the_standard_library(project, capsys):
    card = json.loads(TEACHER.with_suffix(".json").read_text())
    options = {"cmd": "touch PWNED"}
    card["architecture"] |= {"name": "subprocess:getoutput", "options": options, "stem_stride": 4}
    Path("theirs.json").write_text(json.dumps(card))
    shutil.copy(TEACHER, "theirs.pt")
    export = ["export", "theirs.pt", "--format", "pt2", "--out", "x.pt2"]
    assert run(*export) == 1
    assert "a card alone runs no code" in capsys.readouterr().err
    assert run(*export, "--trust-code", "subprocess:getoutput") == 1
    assert "subprocess is part of the standard library" in capsys.readouterr().err
    assert not Path("PWNED").exists()


def test_without_the_extra_the_line_names_it(project, capsys, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert run("export", TEACHER, "--format", "onnx", "--out", "x.onnx") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install -e '{Path(__file__).parents[2]}[export]'" in line


def test_formats_are_these_two(project, capsys):
    assert run("export", TEACHER, "--format", "tflite", "--out", "x") == 2
    assert run("export", TEACHER, "--out", "x") == 2
    assert "'onnx', 'pt2'" in capsys.readouterr().err


def test_the_readmes_deployment_names_the_networks_class(project):
    """Its lines resize by Pillow, which is near torch's kernel, and normalise by hand."""
    code = block_with(DOCUMENT, "import onnxruntime")
    assert "pipeline" not in code
    assert run("export", TEACHER, "--format", "onnx", "--out", "student.onnx") == 0
    network, card = load_checkpoint(TEACHER)
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    photo = np.stack(
        [np.tile(ramp, (40, 1)), np.full((40, 48), 90, np.uint8), np.tile(ramp[:40, None], 48)], 2
    )
    Image.fromarray(photo).save("photo.png")
    names: dict[str, object] = {}
    exec(code.replace("photo.jpg", "photo.png"), names)
    square = torch.from_numpy(photo[:, 4:44].copy()).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(square, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = network(card.preprocessing.normalise(small.permute(0, 2, 3, 1)))[0]
    assert np.allclose(names["logits"], logits.numpy(), atol=0.1)
    assert names["name"] == card.classes[int(logits.argmax())]
