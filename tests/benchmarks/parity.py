"""Does a student lose anything when its teacher's logits come from a cache? Paired seeds on CIFAR-10.

    python -m tests.benchmarks.parity CIFAR10.npz WORK_FOLDER [--seeds 10] [--epochs 15] [--out FILE.json]

Arms, equal in everything else (students' weights, order, optimiser, epochs):

* online: the teacher looks at every batch; views of its own for every seed;
* cached V: the first V of one dump's views, cycled;
* mistake: logits of the un-augmented image, while the student sees random crops;
* scratch: cross-entropy without a teacher.

First, the exact statement: over 50 steps of the same views the cached targets are the online ones up to the
codec, and the losses lie on each other. Results are written after each seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from pipeline.feed import Feed
from pipeline.loader import Loader
from pipeline.losses import make_loss
from pipeline.targets import Targets
from pipeline.training.optimisation import make_optimizer
from pipeline.views.spec import ViewSpec
from tests.benchmarks.environment import environment
from tests.benchmarks.small_students import (
    CPU,
    VIEWS,
    FirstViews,
    GivenTargets,
    OnlineLoader,
    RememberingFeed,
    Rig,
    network,
    summary,
)

CODEC = "affine8"
STEPS = 50


def exact_statement(rig: Rig, codec: str, epochs: int) -> dict[str, float]:
    """Compare targets and losses of 50 steps, cached and online, on the same views."""
    store = rig.dump(codec, epochs)
    feed = rig.bench.feed(rig.bench.data.train, VIEWS, rig.teacher.card.preprocessing)
    cached = Loader(feed, Targets(store, feed.images, CPU), batch_size=128, seed=0)
    online = OnlineLoader(Loader(feed, None, batch_size=128, seed=0), rig.teacher)
    curves = [_steps(rig, loader) for loader in (cached, online)]
    (cached_targets, cached_losses), (online_targets, online_losses) = curves
    targets = [float((a - b).abs().max()) for a, b in zip(cached_targets, online_targets, strict=True)]
    losses = [abs(a - b) / b for a, b in zip(cached_losses, online_losses, strict=True)]
    return {
        "steps": STEPS,
        "largest_difference_of_a_logit": max(targets),
        "largest_relative_difference_of_a_loss": max(losses),
        "kl_t1_mean": store.summary()["fidelity"]["kl_t1_mean"],
    }


def _steps(rig: Rig, loader: Any) -> tuple[list[torch.Tensor], list[float]]:
    """Return targets, each row's maximum 0, and losses of the first steps."""
    torch.manual_seed(0)
    student = network(16, 32, 64, stride=2)
    optimizer = make_optimizer(student, rig.settings)
    targets, losses = [], []
    for batch in itertools.islice(loader.epoch(0), STEPS):
        loss = rig.loss(student(batch.images), batch.labels, batch.teacher_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        targets.append(batch.teacher_logits - batch.teacher_logits.amax(1, keepdim=True))
        losses.append(float(loss.detach()))
    return targets, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results/parity.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    epochs = arguments.epochs
    rig = Rig.of(arguments.npz, arguments.folder, epochs=epochs, loss=make_loss("kd", {}))
    eyes = rig.teacher.card.preprocessing
    teacher = rig.bench.evaluate(rig.teacher.network, eyes, rig.bench.data.test)
    results: dict[str, Any] = {
        "environment": environment(),
        "teacher_top1": teacher.top1,
        "epochs": epochs,
        "exact": {codec: exact_statement(rig, codec, epochs) for codec in ("fp16", CODEC)},
    }
    shared = RememberingFeed(rig.bench.data.train, VIEWS, eyes, device=CPU)
    store = rig.dump(CODEC, epochs)
    counts = [epochs, *(-(-epochs // part) for part in (2, 4, 8)), 1]
    targets: dict[str, Any] = {f"cached V={count}": FirstViews(store, rig.bench, count) for count in counts}
    targets["mistake"] = GivenTargets([rig.clean_logits()], epochs)
    runs: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for arm, given in targets.items():
            runs.setdefault(arm, []).append(rig.train(shared, given, seed))
        plain = rig.train(shared, None, seed, make_loss("scratch", {}))
        runs.setdefault("scratch", []).append(plain)
        runs.setdefault("online", []).append(_online(rig, seed))
        results |= {"runs": runs, "table": summary(runs, "online")}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(seed, {arm: round(values[-1], 4) for arm, values in runs.items()}, flush=True)


def _online(rig: Rig, seed: int) -> float:
    """Train a student with the teacher in the loop, on views that nobody else sees."""
    own = ViewSpec(seed=1000 + seed, random_resized_crop=VIEWS.random_resized_crop, flip=VIEWS.flip)
    feed = Feed(rig.bench.data.train, own, rig.teacher.card.preprocessing, device=CPU)
    loader = Loader(feed, None, batch_size=rig.settings.batch_size, seed=seed)
    return rig.fit(OnlineLoader(loader, rig.teacher), seed)


if __name__ == "__main__":
    main()
