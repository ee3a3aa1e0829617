"""Distillation of speech: WaveNet to DS-CNN on real spoken digits, with held-out speakers.

    python -m tests.benchmarks.spoken_digits recordings.tar.xz FOLDER [--seeds 3] [--rotations 6]

The data is the Free Spoken Digit Dataset (3,000 clips, six speakers, 8 kHz, CC BY-SA 4.0), files
DIGIT_SPEAKER_NUMBER.wav. A rotation trains on four speakers, validates on one and tests on one, in turn. A
random split would be saturated: the test would have the voices of training.

First the strength of the views is chosen: a teacher per strength and rotation, and the strength whose
teachers are best on the validation speakers, on average. Only then is a test clip looked at. Arms, equal in
everything else (weights, order, optimiser, epochs; the last epoch counts):

* labels, label smoothing: without a teacher, fresh views in each epoch;
* kd: the teacher's logits of V stored views; kd V=1: of the first view alone;
* mistake: logits of the un-augmented clips, while the student hears the same views as kd;
* labels 10, kd 10: ten labels per digit are known; kd hears all clips, labels the labelled ones in as many
  steps.

The student has another front end than the teacher: log-mels instead of the waveform. First, the exact
statement: over 50 steps of the same views, stored targets against the teacher in the loop. Results are
written after each student; a run goes on where an earlier one ended.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.codecs.spec import CodecSpec
from pipeline.dump.run import cache_logits
from pipeline.dump.spec import DumpSpec
from pipeline.evaluation.context import RunContext
from pipeline.loading.feed import Feed
from pipeline.loading.loader import Loader
from pipeline.loading.targets import Targets
from pipeline.loading.training_set import TrainingSet
from pipeline.losses import ScheduledLoss, make_loss
from pipeline.modalities.audio.modality import AUDIO
from pipeline.modalities.audio.operations import FrequencyMask, Gain, Shift, Speed, TimeMask
from pipeline.modalities.audio.options import AudioOptions
from pipeline.modalities.audio.preprocessing import GivenAudio
from pipeline.modalities.audio.spec import AudioViewSpec
from pipeline.modalities.prepared import PreparedData
from pipeline.models.checkpoint import ModelCard, load_state, read_tensors
from pipeline.models.pretrained import Start, initial_network
from pipeline.models.teacher import Teacher
from pipeline.samples.labels import keep_labels
from pipeline.samples.packed import Split
from pipeline.samples.prepare import Preparation, prepare
from pipeline.store.reader import LogitStore
from pipeline.tasks.table import find_task
from pipeline.tasks.task import Figures
from pipeline.training.loop import RunSpec, fit
from pipeline.training.optimizer import learning_rate, make_optimizer
from pipeline.training.settings import TrainingSettings
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.rig import FirstViews, GivenTargets, OnlineLoader
from tests.benchmarks.small_students import summary

CPU = torch.device("cpu")
RATE, SECONDS, VIEW_COUNT, STEPS, FEW = 8_000, 0.7, 8, 50, 10
STRENGTHS: Mapping[str, AudioViewSpec] = {
    "weak": AudioViewSpec(seed=1, shift=Shift(seconds=0.03), gain=Gain(min_db=-6.0, max_db=6.0)),
    "medium": AudioViewSpec(
        seed=1,
        speed=Speed(factors=(0.9, 1.0, 1.1)),
        shift=Shift(seconds=0.06),
        gain=Gain(min_db=-9.0, max_db=6.0),
        time_mask=TimeMask(longest=0.15),
        frequency_mask=FrequencyMask(widest=5),
    ),
    "strong": AudioViewSpec(
        seed=1,
        speed=Speed(factors=(0.8, 0.9, 1.0, 1.1, 1.25)),
        shift=Shift(seconds=0.1),
        gain=Gain(min_db=-12.0, max_db=6.0),
        time_mask=TimeMask(longest=0.2, count=2),
        frequency_mask=FrequencyMask(widest=8, count=2),
    ),
}
TEACHER = Start(
    model="wavenet",
    weights=None,
    options={"channels": 24, "skips": 48, "layers": 6, "stacks": 2, "stride": 16, "frame": 10},
)
STUDENT = Start(
    model="ds_cnn",
    weights=None,
    options={"width": 24, "blocks": 2},
    preprocessing=GivenAudio(n_mels=32, n_fft=256, win_length=256, hop_length=128),
)
KD = make_loss("kd", {"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.9})
LABELS, SMOOTHED = make_loss("scratch", {}), make_loss("label_smoothing", {"smoothing": 0.1})
BASELINES = ("labels", "label smoothing")


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The data of one held-out speaker.

    Args:
        number: of the test speaker.
        context: prepared clips.
        folder: for teachers, dumps and states.
        settings: of all training.
    """

    number: int
    context: RunContext
    folder: Path
    settings: TrainingSettings

    @classmethod
    def of(cls, number: int, clips: Path, work: Path, settings: TrainingSettings) -> Rotation:
        """Prepare the clips of a rotation, or open those of an earlier run."""
        folder = work / f"rotation-{number}"
        if not (folder / "data" / "dataset.json").exists():
            options = AudioOptions(sample_rate=RATE)
            table = _table(clips, number, folder / "clips.csv")
            source = AUDIO.open_source(f"csv:{table}", options)
            prepare(
                source,
                folder / "data",
                Preparation(origin="csv:clips.csv", kinds={"modality": AUDIO.name}),
                AUDIO.intake(source, folder / "data", options),
                state=folder / "state",
                workers=2,
                progress=lambda samples, step: iter(samples),
            )
        data = PreparedData.open(folder / "data")
        context = RunContext(data=data, task=find_task(), device=CPU, workers=1)
        return cls(number=number, context=context, folder=folder, settings=settings)

    def begin(self, start: Start, seed: int) -> tuple[nn.Module, ModelCard]:
        """Return a network with fresh weights."""
        return initial_network(self.context.data, replace(start, size=round(SECONDS * RATE)), seed)

    def teacher(self, strength: str) -> Teacher:
        """Train a teacher on views of a strength, or load that of an earlier run."""
        network, card = self.begin(TEACHER, 0)
        path = self.folder / f"{strength}.pt"
        if not path.exists():
            feed = self.feed(strength, card)
            loader = Loader(feed, None, batch_size=self.settings.batch_size, seed=0)
            self.fit(network, card, loader, LABELS, 0)
            torch.save(network.state_dict(), path)
        load_state(network, read_tensors(path), path)
        return Teacher(name=strength, network=network.eval(), card=card, precision="fp32")

    def feed(self, strength: str, card: ModelCard, clips: Split | None = None) -> Feed:
        """Return the training clips as views of a strength, for a model."""
        return self.context.feed(clips or self.context.data.train, STRENGTHS[strength], card.preprocessing)

    def fit(self, network: nn.Module, card: ModelCard, loader: Any, loss: ScheduledLoss, seed: int) -> None:
        """Train a network in place; the last epoch counts."""
        state = self.folder / "run.state"
        state.unlink(missing_ok=True)
        spec = RunSpec(loss=loss, settings=self.settings, seed=seed, state_path=state)
        nobody = self.context.data.validation.subset(np.arange(0))  # nothing is chosen

        def evaluate(trained: nn.Module) -> Figures:
            return self.context.evaluate(trained, card.preprocessing, nobody)

        fit(network, loader, spec, device=CPU, evaluate=evaluate)

    def top1(self, network: nn.Module, card: ModelCard, clips: Split) -> float:
        """Return a network's accuracy on clips."""
        found = self.context.evaluate(network, card.preprocessing, clips).to_dict()["top1"]
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The teacher of a rotation, and what it says of the views of a strength.

    Args:
        rotation: the data.
        strength: of the views.
    """

    rotation: Rotation
    strength: str

    @cached_property
    def teacher(self) -> Teacher:
        """The trained teacher."""
        return self.rotation.teacher(self.strength)

    @cached_property
    def store(self) -> LogitStore:
        """Its logits of all stored views."""
        path = self.rotation.folder / f"{self.strength}.zarr"
        views, codec = STRENGTHS[self.strength], CodecSpec(name="fp16")
        spec = DumpSpec(views=views, view_count=VIEW_COUNT, codec=codec, allow_poor_teacher=True)
        cache_logits(self.rotation.context, self.teacher, spec, path)
        return LogitStore.open(path)

    @cached_property
    def clean_logits(self) -> torch.Tensor:
        """Its logits (N, C) of the un-augmented clips."""
        clips = self.rotation.context.data.train
        feed = self.rotation.context.feed(clips, None, self.teacher.card.preprocessing)
        rows = np.array_split(np.arange(len(clips)), -(-len(clips) // 256))
        return torch.cat([self.teacher.logits(heard) for heard in feed.batches(0, rows)])

    def arms(self) -> dict[str, Callable[[int], float]]:
        """Return per arm a function that trains a student with a seed and returns its top-1."""
        stored = partial(self._targets, VIEW_COUNT)
        return {
            "labels": partial(self._student, LABELS, None),
            "label smoothing": partial(self._student, SMOOTHED, None),
            "kd": partial(self._student, KD, stored),
            "kd V=1": partial(self._student, KD, partial(self._targets, 1)),
            "mistake": partial(
                self._student, KD, lambda feed: GivenTargets([self.clean_logits], VIEW_COUNT)
            ),
            f"labels {FEW}": partial(self._student, LABELS, None, few=True),
            f"kd {FEW}": partial(self._student, KD, stored, few=True),
        }

    def _targets(self, count: int, feed: Feed) -> Targets:
        return FirstViews(self.store, feed, count)

    def _clean_targets(self, feed: Feed) -> GivenTargets:
        return GivenTargets([self.clean_logits], VIEW_COUNT)

    def _student(
        self, loss: ScheduledLoss, targets: Callable[[Feed], Any] | None, seed: int, *, few: bool = False
    ) -> float:
        rotation, data = self.rotation, self.rotation.context.data
        network, card = rotation.begin(STUDENT, seed)
        training_set = self._training_set(few, targets is None)
        feed = rotation.feed(self.strength, card, training_set.images)
        loader = Loader(
            feed,
            None if targets is None else targets(feed),
            batch_size=rotation.settings.batch_size,
            seed=seed,
            training_set=training_set,
        )
        rotation.fit(network, card, loader, loss, seed)
        return rotation.top1(network, card, data.test)

    def _training_set(self, few: bool, labels_alone: bool) -> TrainingSet:
        data = self.rotation.context.data
        if not few:
            return TrainingSet.of_all(data.train)
        known = keep_labels(data.train, data.classes, per_class=FEW, seed=0)
        if labels_alone:
            return TrainingSet.of_labelled(data.train, known, length=len(data.train))
        return TrainingSet.of_all(data.train, known)


def exact_statement(lesson: Lesson) -> dict[str, float]:
    """Compare the losses of 50 steps, stored and online, on the same views and the same features."""
    feed = lesson.rotation.feed(lesson.strength, lesson.teacher.card)
    size = lesson.rotation.settings.batch_size
    stored = Loader(feed, Targets(lesson.store, feed), batch_size=size, seed=0)
    online: Any = OnlineLoader(Loader(feed, None, batch_size=size, seed=0), lesson.teacher)
    curves = [list(_losses(lesson.rotation, loader)) for loader in (stored, online)]
    apart = [abs(a - b) / b for a, b in zip(*curves, strict=True)]
    return {"steps": len(apart), "first": apart[0], "mean": statistics.mean(apart), "largest": max(apart)}


def _losses(rotation: Rotation, loader: Any) -> Iterator[float]:
    """Yield the losses of a student of the teacher's kind, step by step."""
    student, _ = rotation.begin(TEACHER, 1)
    optimizer = make_optimizer(student.train(), rotation.settings)
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    for step, batch in enumerate(itertools.islice(batches, STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rotation.settings, step, loader.steps_per_epoch)
        loss = KD(student(batch.images), batch.labels, batch.teacher_logits)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield float(loss.detach())


def unpack(archive: Path, work: Path) -> Path:
    """Extract the recordings, or find those of an earlier run."""
    folder = work / "clips"
    if not folder.exists():
        with tarfile.open(archive) as file:
            file.extractall(work / "unpacked", filter="data")
        folder.symlink_to(next((work / "unpacked").rglob("*.wav")).parent.resolve())
    return folder


def speakers(clips: Path) -> list[str]:
    """Return the names of all speakers, sorted."""
    return sorted({path.name.split("_")[1] for path in clips.glob("*.wav")})


def _table(clips: Path, number: int, out: Path) -> Path:
    """Write the table of a rotation: who trains, validates and tests."""
    names = speakers(clips)
    roles = {names[number]: "test", names[(number + 1) % len(names)]: "val"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for path in sorted(clips.glob("*.wav")):
            digit, speaker, _ = path.name.split("_")
            writer.writerow([path.absolute(), digit, roles.get(speaker, "train")])
    return out


def choose(rotations: Sequence[Rotation], results: dict[str, Any], save: Callable[[], None]) -> str:
    """Return the strength whose teachers are best on the validation speakers, on average."""
    found = results.setdefault("validation_top1_of_teachers", {})
    for strength, rotation in itertools.product(STRENGTHS, rotations):
        done = found.setdefault(strength, [])
        if len(done) <= rotation.number:
            teacher = rotation.teacher(strength)
            done.append(rotation.top1(teacher.network, teacher.card, rotation.context.data.validation))
            save()
    best: str = max(found, key=lambda strength: statistics.mean(found[strength]))
    return best


def measure(
    lessons: Sequence[Lesson], seeds: int, results: dict[str, Any], save: Callable[[], None]
) -> None:
    """Train the students that are missing in the results, seed by seed."""
    runs = results.setdefault("runs", {})
    tops = results.setdefault("test_top1_of_teachers", [])
    for seed, lesson in itertools.product(range(seeds), lessons):
        if len(tops) <= lesson.rotation.number:
            test = lesson.rotation.context.data.test
            tops.append(lesson.rotation.top1(lesson.teacher.network, lesson.teacher.card, test))
        for name, arm in lesson.arms().items():
            done, place = runs.setdefault(name, []), seed * len(lessons) + lesson.rotation.number
            if len(done) <= place:
                done.append(arm(seed))
                save()
    reference = max(BASELINES, key=lambda name: statistics.mean(runs[name]))
    results["best_baseline"] = reference
    results["table"] = summary(runs, reference)
    results["kd_minus_mistake"] = summary({"kd": runs["kd"]} | {"mistake": runs["mistake"]}, "mistake")[
        "kd"
    ]
    few = {name: runs[name] for name in (f"kd {FEW}", f"labels {FEW}")}
    results["few_labels"] = summary(few, f"labels {FEW}")[f"kd {FEW}"]
    save()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rotations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results/spoken_digits.json"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    settings = TrainingSettings(
        epochs=asked.epochs, batch_size=64, optimizer="adamw", learning_rate=3e-3, weight_decay=0.01
    )
    asked.folder.mkdir(parents=True, exist_ok=True)
    clips = unpack(asked.archive, asked.folder)
    count = min(asked.rotations, len(speakers(clips)))
    rotations = [Rotation.of(number, clips, asked.folder, settings) for number in range(count)]
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    results |= {"environment": environment(CPU), "epochs": asked.epochs, "views": VIEW_COUNT}

    def save() -> None:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")

    results["strength"] = choose(rotations, results, save)
    lessons = [Lesson(rotation=rotation, strength=results["strength"]) for rotation in rotations]
    if "exact" not in results:
        results["exact"] = exact_statement(lessons[0])
        save()
    measure(lessons, asked.seeds, results, save)
    print(json.dumps({name: results[name] for name in ("strength", "exact", "table")}, indent=1))


if __name__ == "__main__":
    main()
