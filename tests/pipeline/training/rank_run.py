"""One of several processes that train together: run as a module with RANK COUNT FOLDER.

FOLDER holds the prepared data; what each variant of a run leaves behind goes to FOLDER/rank-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from pipeline.codecs.spec import CodecSpec
from pipeline.core.distributed import SINGLE, Ranks
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.losses import ScheduledLoss, make_loss
from pipeline.modalities.images.augmentations import Cutmix, PadCrop
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.modalities.images.spec import ViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.architecture import Architecture, build
from pipeline.models.checkpoint import ModelCard
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.training.loop import RunSpec
from pipeline.training.optimizer import LossScale
from pipeline.training.run import train
from pipeline.training.settings import TrainingSettings

PLAIN = ViewSpec(seed=1, pad_crop=PadCrop(padding=1), flip="random")
MIXED = ViewSpec(seed=1, pad_crop=PadCrop(padding=1), cutmix=Cutmix())


def of_the_whole_batch(student: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """A loss that is no mean over samples."""
    probabilities = student.softmax(1)
    columns = probabilities - probabilities.mean(0)
    return make_loss("scratch", {})(student, labels, teacher) + (columns.T @ columns).square().sum()


# 72 training images: steps of 18 over two ranks are 9 and 9, of 10 in parts of 3, 3 and 4 uneven ones.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"settings": {"batch_size": 18}},
    "parts": {"settings": {"batch_size": 10, "accumulate": 3, "clip_norm": 0.5, "ema_decay": 0.9}},
    "mixed": {"settings": {"batch_size": 16}, "views": MIXED},
    "whole": {"settings": {"batch_size": 18}, "loss": ScheduledLoss(of_the_whole_batch)},
    "kd": {"settings": {"batch_size": 10, "accumulate": 3}, "loss": make_loss("kd", {}), "features": True},
    "crd": {"settings": {"batch_size": 18}, "loss": make_loss("crd", {}), "features": True},
    "centre": {
        "settings": {"batch_size": 18, "clip_norm": 0.5},
        "loss": make_loss("centre", {"feature_weight": 0.1}),
        "features": True,
    },
    "adamw": {"settings": {"batch_size": 18, "optimizer": "adamw", "learning_rate": 0.01}},
}


def dump(folder: Path) -> LogitStore:
    """Return the features of a teacher that knows nothing."""
    data, path = PreparedData.open(folder), folder / "features.zarr"
    preprocessing = Preprocessing(size=8, **data.statistics)
    architecture = Architecture(name="wrn_16_2", num_classes=3, channels=1, stem_stride=1)
    torch.manual_seed(1)
    card = ModelCard(architecture=architecture, preprocessing=preprocessing, classes=data.classes)
    teacher = Teacher(name="t", network=build(architecture).eval(), card=card, precision="fp32")
    spec = DumpSpec(
        views=PLAIN, view_count=2, codec=CodecSpec(name="features"), batch_size=8, allow_poor_teacher=True
    )
    if not path.exists():
        cache_logits(
            RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1, ranks=SINGLE),
            teacher,
            spec,
            path,
        )
    return LogitStore.open(path)


def network() -> nn.Module:
    """With batch norms of two and four dimensions; a bias before one would have no gradient but noise."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def result(folder: Path, ranks: Ranks, name: str, **changed: Any) -> dict[str, Any]:
    """Train a variant and return losses, validation figures and weights."""
    variant = VARIANTS[name] | changed
    data = PreparedData.open(folder)
    preprocessing = Preprocessing(size=8, **data.statistics)
    card = ModelCard(
        architecture=Architecture(name="test", num_classes=3),
        preprocessing=preprocessing,
        classes=data.classes,
    )
    settings = {"epochs": 3, "learning_rate": 0.05, "warmup_epochs": 1, **variant["settings"]}
    done = train(
        RunContext(data=data, task=find_task(), device=torch.device("cpu"), workers=1, ranks=ranks),
        network(),
        card,
        RunSpec(
            loss=variant.get("loss", make_loss("scratch", {})),
            settings=TrainingSettings(**settings),
            seed=5,
            state_path=folder / f"{name}-{ranks.count}.state",
            identity={"variant": name},
        ),
        views=variant.get("views", PLAIN),
        store=dump(folder) if variant.get("features") else None,
    )
    figures = [(record.loss, *record.validation.values()) for record in done.history]
    return {"figures": figures, "last": done.last}


def half_steps(ranks: Ranks) -> dict[str, Any]:
    """Do steps of half precision of which the last process's gradients overflow in the first."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    scale = LossScale(optimizer, [], device=torch.device("cpu"), enabled=True, ranks=ranks)
    counted = []
    for step in range(2):
        optimizer.zero_grad()
        scale.begin()
        overflows = step == 0 and ranks.index == ranks.count - 1
        scale.backward(weight.sum() * (1e38 if overflows else 1.0))
        counted.append(scale.step())
    return {"counted": counted, "weight": weight.detach()}


def main() -> None:
    """Join the others, train each variant with them, and let the first one write."""
    index, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=index, world_size=count)
    ranks = Ranks(index, count)
    results = {name: result(folder, ranks, name) for name in VARIANTS}
    results["half"] = half_steps(ranks)
    distributed.destroy_process_group()
    torch.save(results, folder / f"rank-{index}.pt")


if __name__ == "__main__":
    main()
