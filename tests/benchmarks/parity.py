"""Measure what a student loses when its teacher's logits are cached. Paired seeds on CIFAR-10.

    python -m tests.benchmarks.parity CIFAR10.npz WORK_FOLDER [--seeds 10] [--pairs 40] [--epochs 15]

Arms, equal in everything else (initial weights, order, optimiser, epochs):

* online: the teacher runs on every batch; every seed has different views;
* cached: all views of one dump, as many as epochs;
* cached V: the first V views of that dump, cycled;
* mistake: logits of the un-augmented image, while the student sees random crops;
* scratch: cross-entropy without a teacher.

First, the exact statement: over 50 steps on the same views, the cached targets equal the online ones up to
the codec's error. The losses differ as little as those of an online run with its logits changed by a
relative 1e-7: training amplifies any last bit. Seeds beyond --seeds, up to --pairs, run only the first two
arms, whose difference is small. Results are saved after each student, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.targets import Targets
from pipeline.losses import make_loss
from pipeline.store.reader import LogitStore
from pipeline.training.optimizer import learning_rate, make_optimizer
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.rig import FirstViews, GivenTargets, OnlineLoader, RememberingFeed, Rig
from tests.benchmarks.small_students import CPU, VIEWS, small_rig, summary

CODEC = "affine8"
BEST, ONLINE, MISTAKE = "cached", "online", "mistake"
STEPS = 50
Arm = Callable[[int], float]


def exact_statement(rig: Rig, codec: str, epochs: int) -> dict[str, Any]:
    """Compare targets and losses of 50 steps, cached and online, on the same views."""
    store = rig.dump(codec, epochs)
    feed = rig.context.feed(rig.context.data.train, VIEWS, rig.teacher.card.preprocessing)
    cached = Loader(feed, Targets(store, feed), batch_size=128, seed=0)
    online = OnlineLoader(Loader(feed, None, batch_size=128, seed=0), rig.teacher)
    (targets, losses), (online_targets, online_losses) = (
        _steps(rig, loader) for loader in (cached, online)
    )
    _, nudged_losses = _steps(rig, online, nudge=1e-7)
    differences = [float((a - b).abs().max()) for a, b in zip(targets, online_targets, strict=True)]
    return {
        "steps": STEPS,
        "kl_t1_mean": store.summary()["fidelity"]["kl_t1_mean"],
        "largest_difference_of_a_logit": max(differences),
        "relative_difference_of_the_loss": _apart(losses, online_losses),
        "the_same_of_a_nudged_run": _apart(nudged_losses, online_losses),
    }


def _apart(losses: list[float], others: list[float]) -> dict[str, float]:
    """Return relative differences between two loss curves: at the first step, and over all steps."""
    apart = [abs(a - b) / b for a, b in zip(losses, others, strict=True)]
    return {"first": apart[0], "mean": statistics.mean(apart), "largest": max(apart)}


def _steps(rig: Rig, loader: Any, nudge: float = 0.0) -> tuple[list[torch.Tensor], list[float]]:
    """Return the targets, shifted to a maximum of 0 per row, and the losses of the first steps."""
    student = rig.student(0)
    optimizer = make_optimizer(student, rig.settings)
    targets, losses = [], []
    for step, batch in enumerate(itertools.islice(loader.epoch(0), STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rig.settings, step, loader.steps_per_epoch)
        loss = rig.loss(student(batch.images), batch.labels, batch.teacher_logits * (1 + nudge))
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
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results/parity.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    epochs = arguments.epochs
    rig = small_rig(arguments.npz, arguments.folder, epochs=epochs, loss=make_loss("kd", {}))
    results = begun(arguments.out) or {
        "environment": environment(),
        "teacher_top1": rig.context.evaluate(
            rig.teacher.network, rig.teacher.card.preprocessing, rig.context.data.test
        ).top1,
        "epochs": epochs,
        "exact": {codec: exact_statement(rig, codec, epochs) for codec in ("fp16", CODEC)},
        "runs": {},
    }
    runs: dict[str, list[float]] = results["runs"]
    shared = RememberingFeed(rig.context.data.train, VIEWS, rig.teacher.card.preprocessing, device=CPU)
    counts = [epochs, *(-(-epochs // part) for part in (2, 4, 8)), 1]
    store = functools.cache(lambda: rig.dump(CODEC, epochs))
    arms = make_arms(rig, shared, store, counts)
    for seed in range(max(arguments.seeds, arguments.pairs)):
        wanted = arms if seed < arguments.seeds else {name: arms[name] for name in (BEST, ONLINE)}
        for name, arm in wanted.items():
            done = runs.setdefault(name, [])
            if len(done) <= seed:
                done.append(arm(seed))
                results["table"] = summary(runs, ONLINE) if ONLINE in runs else {}
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(seed, {name: round(runs[name][seed], 4) for name in wanted}, flush=True)


def begun(path: Path) -> dict[str, Any] | None:
    """Return the results so far of an interrupted run, or None."""
    if not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def make_arms(
    rig: Rig, feed: Feed, store: Callable[[], LogitStore], counts: Sequence[int]
) -> dict[str, Arm]:
    """Return per arm a function that trains a student with a seed and returns its top-1.

    Args:
        rig: data, teacher and settings.
        feed: the training images in the rig's views, for all arms but `online`.
        store: opens the dump of the cached arms, with as many views as epochs.
        counts: numbers of stored views V of the cached arms; as many as epochs is the arm `BEST`.
    """
    epochs = rig.settings.epochs
    clean = functools.cache(rig.clean_logits)

    def cached(name: str, count: int, seed: int) -> float:
        return rig.train(name, feed, FirstViews(store(), feed, count), seed)

    def mistake(seed: int) -> float:
        return rig.train(MISTAKE, feed, GivenTargets([clean()], epochs), seed)

    names = {count: BEST if count == epochs else f"cached V={count}" for count in counts}
    return {
        **{name: partial(cached, name, count) for count, name in names.items()},
        MISTAKE: mistake,
        "scratch": partial(rig.train, "scratch", feed, None, loss=make_loss("scratch", {})),
        ONLINE: partial(rig.online, ONLINE),
    }


if __name__ == "__main__":
    main()
