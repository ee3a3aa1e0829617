"""A whole resident step, from gathering to the optimiser, never waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.core.distributed import SINGLE
from pipeline.dump.run import cache_logits
from pipeline.loading import targets
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Batch, Loader
from pipeline.loading.targets import Targets
from pipeline.losses import make_loss
from pipeline.modalities.images.augmentations import Cutmix, PadCrop, RandAugment, RandomErasing
from pipeline.modalities.images.preprocessing import Preprocessing, _lines
from pipeline.modalities.images.rendering import resident
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.table import mixed_blocks
from pipeline.store.reader import LogitStore
from pipeline.training.loop import _Training
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import RunState
from tests.pipeline.waiting import NoWaiting, no_waiting_on_cuda

CUDA = torch.device("cuda")
VIEWS = ViewSpec(
    seed=2,
    pad_crop=PadCrop(padding=2),
    flip="random",
    rand_augment=RandAugment(),
    random_erasing=RandomErasing(),
    cutmix=Cutmix(probability=0.5),
)
SETTINGS = TrainingSettings(epochs=2, batch_size=16, clip_norm=1.0)


@pytest.fixture(scope="module", params=["affine8", "fp16", "features"])
def store(request, context, teacher, make_spec, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("waiting") / "main.zarr"
    cache_logits(context, teacher, make_spec(views=VIEWS, codec=request.param), path)
    return LogitStore.open(path)


def _training(store: LogitStore, images, device: torch.device) -> tuple[_Training, Iterator[Batch]]:
    preprocessing = Preprocessing(size=12, mean=(0.3,), std=(0.2,))
    blocks = mixed_blocks(store, images)
    feed = Feed(images, VIEWS, preprocessing, device=device, blocks=blocks, on_device=True)
    loader = Loader(feed, Targets(store, feed), batch_size=16, seed=4, n_classes=3)
    with device:
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(), nn.Linear(800, 3)
        )
    run = RunState(network, SETTINGS, device)
    return _Training(run, loader, make_loss("kd", {}), seed=1, ranks=SINGLE), loader.epoch(0)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_resident_step_never_waits_for_a_cuda_device(store, context):
    training, batches = _training(store, context.data.train, CUDA)
    training._step(batches)  # what is set up once may wait
    with no_waiting_on_cuda():
        training._step(batches)
        training._step(batches)


class _AtOnce:
    """In place of threads: fake tensors are of one thread."""

    def __init__(self, *_, **__) -> None:
        pass

    def submit(self, call, *arguments) -> Future:
        done: Future = Future()
        done.set_result(call(*arguments))
        return done


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeTensorMode]:
    """Tensors without values, which refuse to be read, and may seem to lie on a CUDA device."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    class Courier:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def bring(self, arrays):
            return {name: array.to(self._device, non_blocking=True) for name, array in arrays.items()}

    for module in (resident, targets):
        monkeypatch.setattr(module, "ThreadPoolExecutor", _AtOnce)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which a fake one lacks
    monkeypatch.setattr(targets, "Courier", Courier)
    monkeypatch.setattr(targets, "require_no_drift", lambda *_: None)  # which looks at pixels, once
    _lines.cache_clear()
    yield mode
    _lines.cache_clear()


def test_a_resident_batch_and_its_loss_never_wait_for_the_device(store, context, fake):
    with fake:
        training, batches = _training(store, context.data.train, CUDA)
        next(batches)
        with NoWaiting():
            batch = next(batches)
            logits = training.network(batch.images)
            loss = make_loss("kd", {})(logits, batch.labels, batch.teacher_logits)
    assert loss.device.type == "cuda"


def test_a_whole_step_looks_at_no_value(store, context, fake):
    """On the CPU, where fake tensors have gradients."""
    with fake:
        training, batches = _training(store, context.data.train, torch.device("cpu"))
        training._step(batches)
        training._step(batches)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(training._run.current.loss)
