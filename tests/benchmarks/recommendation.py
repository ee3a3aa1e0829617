"""Recommendation: a large SASRec teaches small ones; NDCG@10 paired per user.

    python -m tests.benchmarks.recommendation FOLDER [--movielens recbole.whl] [--student small] [--seeds 5]
        [--split test] [--views 8] [--set KEY=VALUE ...] [--out FILE.json]

The log is the built-in one, or MovieLens-100k as the wheel of RecBole 1.2.1 carries it: the script reads
that file from a path that you give, and nothing of it is kept in this repository (its licence forbids to
pass it on). Data, teacher and dump are made by the real commands in FOLDER, with the preset's parameters
and more views. All students train for the preset's epochs on the same views, in the same order for one
seed:

    scratch, label_smoothing    labels alone
    kd V=8, kd V=1              the teacher's stored answers on exactly these views; V=1 has one view alone

Each run leaves its NDCG@10 of every user in FOLDER/users; what is there is not made again. A difference is
taken per user between means over the seeds, so its standard error is one over users. Settings are chosen
with --split validation; then --split test is looked at once.

Told as well: bytes and KL of `features` and `topk-K`, and how far a student's first loss, and its losses
over 50 steps, are from online distillation if the store is fp16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.losses import make_loss
from pipeline.losses.logits import kd
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.table import views_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.pretrained import initial_network
from pipeline.models.teacher import Teacher
from pipeline.store.reader import LogitStore
from pipeline.tasks.next_item import FIRST, ranks
from pipeline.tasks.table import find_task
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit
from stages import paths
from stages.params import Params
from stages.params_file import load_params
from stages.runtime import keep_freed_memory
from tests.benchmarks.commands import pipeline
from tests.benchmarks.environment import environment
from tests.benchmarks.rig import FirstViews

CPU = torch.device("cpu")
REFERENCE = "scratch"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
# Of a log with time: no shuffle of the whole history, and all samples.
WITH_TIME = (
    *("data.source=inter:ml-100k.inter", "data.watch=ml-100k.inter", "data.samples_per_user=null"),
    *("training.views={seed: 1, mask: {probability: 0.1}}", "teachers.teacher.options.dropout=0.3"),
    "dumps.main.views={count: 4, seed: 1, mask: {probability: 0.1}}",
)
CODECS = ("features", "topk-10", "topk-50", "topk-100", "topk-200")
_STEPS, _BATCH = 50, 256
Users = NDArray[np.float64]


def set_up(folder: Path, changes: Sequence[str], wheel: Path | None) -> None:
    """Write the preset's parameters, and make data, teacher and dump, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "params.yaml").exists():
        pipeline(folder, "preset", "items", "--out", "params.yaml")
    if wheel is not None and not (folder / "ml-100k.inter").exists():
        with zipfile.ZipFile(wheel) as archive:
            (folder / "ml-100k.inter").write_bytes(archive.read(MEMBER))
    told = _told(changes)
    for command in (["prepare"], ["train-teacher", "teacher"], ["cache-logits", "main"]):
        if command[0] != "train-teacher" or not (folder / paths.teacher_checkpoint("teacher")).exists():
            pipeline(folder, *command, *told)


def _told(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def gains(scores_NC: Tensor, labels_N: Tensor) -> Users:
    """Return NDCG@10 of each user (N,): 1 / log2(1 + rank) of the next item, 0 beyond rank 10."""
    rank = ranks(scores_NC, labels_N).double()
    gained: Users = torch.where(rank <= FIRST, 1 / torch.log2(1 + rank), 0.0).numpy()
    return gained


@dataclass(frozen=True, kw_only=True)
class Rig:
    """Data, teacher, store and parameters of all students.

    Args:
        folder: of the project.
        params: its parameters.
        student: name of the student.
        split: whose NDCG is told.
    """

    folder: Path
    params: Params
    student: str
    split: str

    @cached_property
    def context(self) -> RunContext:
        """The prepared data on the CPU."""
        data = PreparedData.open(self.folder / paths.PREPARED)
        return RunContext(data=data, task=find_task(data.task), device=CPU, workers=1)

    @cached_property
    def store(self) -> LogitStore:
        """The teacher's answers on all views."""
        return LogitStore.open(self.folder / paths.store("main"))

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher itself."""
        network, card = load_checkpoint(self.folder / paths.teacher_checkpoint("teacher"))
        return Teacher(name="teacher", network=network, card=card, precision="fp32")

    def arms(self) -> dict[str, Callable[[int], Users]]:
        """Return per arm a function that trains a student with a seed and returns its users' NDCG."""
        recipe, views = self.params.recipe("kd"), self.store.n_views
        loss = partial(make_loss, recipe.loss, recipe.settings)
        return {
            "scratch": partial(self._train, make_loss("scratch", {}), 0),
            "label_smoothing": partial(self._train, make_loss("label_smoothing", {}), 0),
            f"kd V={views}": partial(self._train, loss(), views),
            "kd V=1": partial(self._train, loss(), 1),
        }

    def teachers_users(self) -> Users:
        """Return the teacher's NDCG of each user."""
        return self._users(self.teacher.network, self.teacher.card.preprocessing)

    def _users(self, network: nn.Module, preprocessing: Any) -> Users:
        logits, labels = self.context.predict(
            network, preprocessing, getattr(self.context.data, self.split)
        )
        return gains(logits, labels)

    def _train(self, loss: Any, views: int, seed: int) -> Users:
        network, preprocessing, loader = self._begun(seed, self.store, views)
        state = self.folder / "student.state"
        state.unlink(missing_ok=True)
        settings = self.params.student(self.student).training.settings()
        run = RunSpec(loss=loss, settings=settings, seed=seed, state_path=state)
        fit(network, loader, run, device=CPU, evaluate=self._unknown)
        return self._users(network, preprocessing)

    def _begun(self, seed: int, store: LogitStore, views: int) -> tuple[nn.Module, Any, Loader]:
        """Return a student, its preprocessing and its loader; without targets if there are no views."""
        data, spec = self.context.data, self.params.student(self.student)
        network, card = initial_network(data, spec.start(self.params.data.options.size), seed)
        feed = self.context.feed(data.train, views_of(store), card.preprocessing)
        targets = FirstViews(store, feed, views) if views else None
        batch = spec.training.settings().batch_size
        return (
            network,
            card.preprocessing,
            Loader(feed, targets, batch_size=batch, seed=seed, n_classes=len(data.classes)),
        )

    def _unknown(self, network: nn.Module) -> Figures:
        nothing = torch.zeros(0, len(self.context.data.classes)), torch.zeros(0, dtype=torch.int64)
        return self.context.task.compare(*nothing)

    def online_differences(self, changes: Sequence[str]) -> dict[str, float]:
        """Return how far the losses of 50 steps on an fp16 store are from those of the teacher itself."""
        exact = ("dumps.main.codec=fp16", "dumps.main.max_kl=null", "dumps.main.views.count=1")
        pipeline(self.folder, "cache-logits", "main", "--out", "exact.zarr", *_told([*changes, *exact]))
        store = LogitStore.open(self.folder / "exact.zarr")
        curves = np.array([self._losses(store, online=online) for online in (False, True)])
        shutil.rmtree(self.folder / "exact.zarr")
        relative = np.abs(curves[0] - curves[1]) / curves[1]
        return {"first_loss": float(relative[0]), "largest_of_50_steps": float(relative.max())}

    def _losses(self, store: LogitStore, *, online: bool) -> list[float]:
        network, _, loader = self._begun(0, store, 1)
        feed: Feed = self.context.feed(
            self.context.data.train, views_of(store), self.teacher.card.preprocessing
        )
        optimiser, losses = torch.optim.AdamW(network.parameters(), lr=3e-3), []
        network.train()
        for batch in loader.epoch(0):
            torch.manual_seed(len(losses))
            told = batch.teacher_logits
            if online:
                (ids,) = feed.batches(0, [batch.rows])
                told = self.teacher.logits(ids)
            loss = kd(network(batch.images), batch.labels, told, temperature=1.0)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            if len(losses) == _STEPS:
                break
        return losses


def codec_rows(folder: Path, changes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return bytes per row and KL of one view under each codec."""
    found = {}
    for codec in CODECS:
        asked = (f"dumps.main.codec={codec}", "dumps.main.max_kl=null", "dumps.main.views.count=1")
        pipeline(folder, "cache-logits", "main", "--out", "codec.zarr", *_told([*changes, *asked]))
        told = json.loads(pipeline(folder, "inspect", "codec.zarr", "--json"))
        fidelity = told["fidelity"]
        found[codec] = {
            "bytes_per_row": told["bytes_per_sample_view"],
            "kl_t1_mean": fidelity["kl_t1_mean"],
            "top1_agreement": fidelity["top1_agreement"],
        }
        shutil.rmtree(folder / "codec.zarr")
    return found


def paired(arms: Mapping[str, Sequence[Users]]) -> dict[str, dict[str, float]]:
    """Return NDCG of each arm and its difference to scratch, each with a standard error over users.

    >>> paired({"scratch": [np.array([0.0, 0.5])], "kd": [np.array([0.5, 1.0])]})["kd"]["difference"]
    0.5
    """
    means = {name: np.mean(users, 0) for name, users in arms.items() if users}
    table = {}
    for name, users in means.items():
        difference = users - means[REFERENCE]
        table[name] = {
            "seeds": len(arms[name]),
            "ndcg10": float(users.mean()),
            "difference": float(difference.mean()),
            "standard_error_over_users": float(difference.std(ddof=1) / len(users) ** 0.5),
        }
    return table


def measure(rig: Rig, seeds: int, changes: Sequence[str], out: Path) -> dict[str, Any]:
    """Make what is missing in a file and in FOLDER/users, save each on completion, return the content."""
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "online": partial(rig.online_differences, changes),
        "codecs": partial(codec_rows, rig.folder, changes),
        "teacher_ndcg10": lambda: float(rig.teachers_users().mean()),
    }
    for name, make in parts.items():
        if name not in results:
            results[name] = make()
            _save(out, rig, results)
    arms = rig.arms()
    found: dict[str, list[Users]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, arm in arms.items():
            path = rig.folder / "users" / f"{rig.student}-{rig.split}-{name.replace(' ', '-')}-{seed}.npy"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                np.save(path, arm(seed))
            found[name].append(np.load(path))
        results["table"] = paired(found)
        _save(out, rig, results)
    return results


def _save(out: Path, rig: Rig, results: dict[str, Any]) -> None:
    data = rig.context.data
    told = {"users": len(getattr(data, rig.split)), "items": len(data.classes), "train": len(data.train)}
    results |= {"environment": environment(CPU), "student": rig.student, "split": rig.split, "log": told}
    out.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--movielens", type=Path, default=None)
    parser.add_argument("--student", default="small")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("recommendation.json"))
    given = parser.parse_args()
    keep_freed_memory()
    log = WITH_TIME if given.movielens else ()
    changes = [*log, f"dumps.main.views.count={given.views}", *given.changes]
    set_up(given.folder, changes, given.movielens)
    params = load_params(given.folder / "params.yaml", tuple(changes))
    rig = Rig(folder=given.folder, params=params, student=given.student, split=given.split)
    results = measure(rig, given.seeds, changes, given.out)
    print(json.dumps({name: results[name] for name in ("online", "codecs", "teacher_ndcg10")}, indent=1))
    for name, row in results["table"].items():
        print(
            f"{name:16} NDCG@10 {100 * row['ndcg10']:6.2f} %   {100 * row['difference']:+6.2f} ± "
            f"{100 * row['standard_error_over_users']:.2f}"
        )


if __name__ == "__main__":
    main()
