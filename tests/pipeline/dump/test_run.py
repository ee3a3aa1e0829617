"""The dump against a plain one, which does one thing after the other; and what stops it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_features
from pipeline.core.errors import ModelError
from pipeline.dump.choose_codec import run_pilot
from pipeline.dump.encode import Examined, ShardBuffers, examine
from pipeline.dump.open import blocks_of
from pipeline.dump.run import cache_logits
from pipeline.dump.verify import replay, verify
from pipeline.modalities.images.augmentations import Mixup
from pipeline.modalities.images.form import ImageSource
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.teacher import Teacher
from pipeline.samples.samples import Sample
from pipeline.store.layout import ShardId
from pipeline.store.ledger import Records
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.store.records import RenderChecksums, checksum_rows
from tests.pipeline.conftest import VIEWS
from tests.pipeline.waiting import NoWaiting, no_waiting_on_cuda

MIXED = ViewSpec(seed=9, flip="random", mixup=Mixup(alpha=1.0))
SHARD_ROWS = 16
CODECS = ("fp16", "affine8", "affine6", "affine4", "topk-2", "features")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    return torch.device(request.param)


def _on(device, context, teacher):
    network = copy.deepcopy(teacher.network).to(device)
    return replace(context, device=device), replace(teacher, network=network)


@pytest.mark.parametrize("batch_size", [4, 8, 12, 16, 40])
@pytest.mark.parametrize(("codec", "views"), [("affine8", VIEWS), ("topk-2", MIXED), ("features", VIEWS)])
def test_a_dump_holds_what_a_plain_one_would(
    context, teacher, make_spec, tmp_path, device, batch_size, codec, views
):
    context, teacher = _on(device, context, teacher)
    spec = make_spec(codec, views=views, batch_size=batch_size, view_count=2)
    cache_logits(context, teacher, spec, tmp_path / "main.zarr")
    store = LogitStore.open(tmp_path / "main.zarr")
    images = context.data.train
    rows = np.arange(len(images))
    blocks = blocks_of(store.manifest.layout, rows, len(images))
    feed = context.feed(images, views, teacher.card.preprocessing, blocks)
    for shard, record in store.manifest.shards.items():
        if shard.section != "train":
            continue
        mine = rows[store.manifest.layout.rows(shard)]
        order = feed.arrange(shard.view, mine)
        parts, fidelities, predicted, pixels = [], [], [], []
        for start in range(0, len(mine), batch_size):
            chosen = mine[order[start : start + batch_size]]
            batch = feed.pixels(shard.view, chosen)
            output = teacher.output(teacher.card.preprocessing.normalise(batch))
            encoded = store.codec.encode(output, context.task)
            fidelities.append(Fidelity.measure(context.task, output.logits, store.codec.decode(encoded)))
            parts.append({name: values.cpu().numpy() for name, values in encoded.items()})
            predicted.append(output.logits.argmax(1).cpu().numpy())
            pixels.append(batch.cpu().numpy())
        back = np.argsort(order)
        for name in store.codec.arrays:
            stored = zarr.open_array(f"{store.location}/train/{name}", mode="r")[shard.view][mine]
            np.testing.assert_array_equal(stored, np.concatenate([part[name] for part in parts])[back])
        measured, expected = record.fidelity, Fidelity.total(context.task.measures, fidelities)
        assert measured.same == expected.same
        for name, divergence in expected.divergences.items():
            assert measured.divergences[name].histogram == divergence.histogram
            assert measured.divergences[name].total == pytest.approx(divergence.total, rel=1e-12)
        assert record.correct == (np.concatenate(predicted)[back] == images.labels[mine]).sum()
        checksums = RenderChecksums.of(np.concatenate(pixels)[back][checksum_rows(len(mine))])
        assert record.checksums.to_dict() == checksums.to_dict()


def _spoil(monkeypatch, after: int, value: float, *, in_features: bool = False) -> None:
    """Let the teacher say something that is no number of the image that comes after so many others."""
    plain, seen = Teacher.output, 0

    @torch.inference_mode()
    def output(self, images):
        nonlocal seen
        said = plain(self, images)
        row, seen = after - seen, seen + len(images)
        if 0 <= row < len(images):
            (said.features if in_features else said.logits)[row, 1] = value
        return said

    monkeypatch.setattr(Teacher, "output", output)


def _held_out(context) -> int:
    return len(context.data.validation) + len(context.data.test)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
# The first image, in the middle of a later batch, the last of a shard, and of all.
@pytest.mark.parametrize(("after", "batch_size"), [(0, 5), (23, 5), (29, 5), (47, 8), (200, 16), (203, 3)])
def test_the_very_sample_is_named_and_nothing_of_its_shard_is_written(
    context, teacher, make_spec, tmp_path, monkeypatch, value, after, batch_size
):
    path, names, spec = tmp_path / "main.zarr", context.data.train.names, make_spec(batch_size=batch_size)
    coming = [
        (ShardId("train", view, start // SHARD_ROWS), row)
        for start in range(0, len(names), SHARD_ROWS)
        for view in range(3)
        for row in range(start, min(start + SHARD_ROWS, len(names)))
    ]
    bad, row = coming[after]
    _spoil(monkeypatch, _held_out(context) + after, value)
    with pytest.raises(
        ModelError, match=rf"not finite for sample '{names[row]}' in view {bad.view} of train"
    ):
        cache_logits(context, teacher, spec, path)
    done = {shard for shard in Records(path).read() if shard.section == "train"}
    assert done == {shard for shard, _ in coming[:after]} - {bad}
    written = {
        file.relative_to(path / "train/logits/c").parts[:2] for file in path.glob("train/logits/c/*/*")
    }
    assert written == {(str(shard.view), str(shard.block)) for shard in done}
    # The run goes on when the teacher is well again.
    monkeypatch.undo()
    cache_logits(context, teacher, spec, path)
    LogitStore.open(path)


@pytest.mark.parametrize("codec", CODECS)
def test_no_codec_stumbles_over_what_is_not_finite(
    context, teacher, make_spec, tmp_path, monkeypatch, codec
):
    path, names = tmp_path / "main.zarr", context.data.train.names
    cache_logits(context, teacher, make_spec(codec, view_count=1), path)
    _spoil(monkeypatch, 20, float("nan"))
    with pytest.raises(ModelError, match=rf"not finite for sample '{names[20]}' in view 1 of train"):
        cache_logits(context, teacher, make_spec(codec, view_count=2), path)
    assert LogitStore.open(path).n_views == 1


def test_a_logit_beyond_a_codecs_numbers_is_refused_with_its_sample(
    context, teacher, make_spec, tmp_path, monkeypatch
):
    path, names = tmp_path / "main.zarr", context.data.train.names
    cache_logits(context, teacher, make_spec("affine8", view_count=1), path)
    _spoil(monkeypatch, 20, 1e30)
    with pytest.raises(ModelError, match=rf"too large for the codec, for sample '{names[20]}' in view 1"):
        cache_logits(context, teacher, make_spec("affine8", view_count=2), path)
    assert LogitStore.open(path).n_views == 1
    # Half precision ends where softmax is 0 anyway.
    _spoil(monkeypatch, _held_out(context) + 20, 1e30)
    cache_logits(context, teacher, make_spec("fp16", view_count=1), tmp_path / "half.zarr")


def test_features_that_are_not_finite_are_refused_too(context, teacher, make_spec, tmp_path, monkeypatch):
    _spoil(monkeypatch, _held_out(context) + 13, float("inf"), in_features=True)
    with pytest.raises(ModelError, match=rf"sample '{context.data.train.names[13]}'"):
        cache_logits(context, teacher, make_spec("fp16"), tmp_path / "main.zarr")


def _codec(name: str, context, teacher, make_spec):
    if name != "features":
        return find_codec(name, len(context.data.classes))
    pilot = run_pilot(context, teacher, make_spec())
    return fit_features(pilot.output, teacher.head, 1e-2, context.task)


@pytest.mark.parametrize("name", CODECS)
def test_nothing_of_a_batch_waits_for_the_device(context, teacher, make_spec, name):
    """On tensors without values, which refuse to be read, as if they lay on a CUDA device."""
    codec = _codec(name, context, teacher, make_spec)
    preprocessing = replace(teacher.card.preprocessing, mean=(0.123,))
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixels = torch.zeros(8, 12, 12, 1, dtype=torch.uint8, device="cuda")
        logits = torch.zeros(8, len(context.data.classes), device="cuda")
        features = torch.zeros(8, teacher.head.in_features, device="cuda")

        def work() -> Examined[torch.Tensor]:
            assert preprocessing.normalise(pixels).device.type == "cuda"
            return examine(TeacherOutput(logits, features), codec, context.task, pixels[:2])

        work()  # what is sent once may wait
        with NoWaiting():
            told = work()
    devices: dict[tuple[str, str], str] = {}
    told.map(lambda name, values: devices.setdefault(name, values.device.type))
    assert set(devices.values()) == {"cuda"}
    assert told.arrays.keys() == codec.arrays.keys()


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("on_device", [True, False], ids=["resident", "staged"])
@pytest.mark.parametrize("name", CODECS)
def test_the_steady_state_waits_for_no_cuda_device(context, teacher, make_spec, name, on_device):
    context, teacher = _on(torch.device("cuda"), replace(context, on_device=on_device), teacher)
    spec, images = make_spec(name), context.data.train
    codec = _codec(name, context, teacher, make_spec)
    feed = context.feed(images, spec.views, teacher.card.preprocessing)
    rows = [np.arange(start, start + 8) for start in range(0, 64, 8)]

    def dump() -> list[int | None]:
        buffers = ShardBuffers(codec, context.task, context.device)
        buffers.begin(ShardId("train", 0, 0), np.arange(64))
        for pixels in feed.rendered((0, some) for some in rows):
            buffers.put(teacher.output(feed.preprocessing.normalise(pixels)), pixels)
        whole = buffers.finish()
        return [] if whole is None else [whole.bad]

    dump()  # what is set up once may wait
    with no_waiting_on_cuda():
        assert dump() == [None]


class _Echo(nn.Module):
    """Notes the memory format of what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.channels_last: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.channels_last.append(images.is_contiguous(memory_format=torch.channels_last))
        return self.network(images)


def test_the_teacher_is_given_channels_last(context, teacher, make_spec, tmp_path):
    echo = _Echo(teacher.network)
    cache_logits(context, replace(teacher, network=echo.eval()), make_spec(), tmp_path / "main.zarr")
    assert all(echo.channels_last)
    assert len(echo.channels_last) > 10


@pytest.fixture
def _traced_only(monkeypatch):
    """Making kernels takes minutes."""
    torch.compiler.reset()
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile_it(network, backend="eager"))


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("codec", ["affine8", "features"])
def test_a_dump_of_a_compiled_teacher_may_go_on_without_compiling(
    context, teacher, make_spec, tmp_path, monkeypatch, codec
):
    path = tmp_path / "main.zarr"
    spec = make_spec(codec, compile=True, batch_size=12)
    cache_logits(context, teacher, spec, path, part=Slice(0, 2), completes=False)
    begun = len(Records(path).read())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", None)
        cache_logits(context, teacher, replace(spec, compile=False), path)
    store = LogitStore.open(path)
    assert 2 < begun < len(store.manifest.shards)
    assert verify(path).ok
    assert replay(store, context, teacher, 60).ok
    plain = tmp_path / "plain.zarr"
    cache_logits(context, teacher, replace(spec, compile=False), plain)
    assert LogitStore.open(plain).manifest.header == store.manifest.header


@pytest.mark.usefixtures("_traced_only")
def test_a_teacher_is_compiled_only_if_a_shard_is_missing(context, teacher, make_spec, tmp_path, capsys):
    spec = make_spec(compile=True)
    for times in (1, 0):
        cache_logits(context, teacher, spec, tmp_path / "main.zarr")
        assert capsys.readouterr().err.count("compiled in") == times


def test_a_store_of_many_equal_images_is_sound(context, teacher, make_spec, tmp_path, prepare_quietly):
    """Their digests are equal, and compress to less than four bytes a sample; keys do not."""
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    train = [Sample(f"train/{n}", n % 3, lambda: image) for n in range(400)]
    test = [Sample(f"test/{n}", n % 3, lambda: image) for n in range(40)]
    source = ImageSource(classes=context.data.classes, channels=1, train=train, test=test)
    data = PreparedData.open(prepare_quietly(source, tmp_path / "prepared"))
    path = tmp_path / "main.zarr"
    cache_logits(replace(context, data=data), teacher, make_spec(allow_poor_teacher=True), path)
    assert LogitStore.open(path).n_samples == len(data.train)
    assert verify(path).bad == []
