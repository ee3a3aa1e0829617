"""The table of claims: each with the published number, the one measured here, and whether it holds.

Published numbers are quoted from the source beside them. Ours come from the result files, by the functions
of `verdicts.py`; a claim whose files are missing is "not run yet".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.gallery import accuracy, verdicts
from tests.benchmarks.gallery.results import NOT_RUN, RESULTS, Found, read, table
from tests.benchmarks.tutorial import PUBLISHED

LOSS_TABLES = ("loss_table_fashion_mnist.json", "loss_table_cifar10.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the field, or of this project.

    Args:
        sentence: the claim, with a link to its section.
        published: number and source; "–" for none.
        command: what measures it.
        files: results that it needs.
        found: takes the content of each file; returns the figures here, and whether the claim holds.
            None for a claim that no benchmark of this project measures yet.
    """

    sentence: str
    published: str
    command: str
    files: tuple[str, ...] = ()
    found: Callable[..., verdicts.Verdict | None] | None = None

    def row(self, folder: Path = RESULTS) -> tuple[str, ...]:
        """Return the cells: claim, published, here, holds, run."""
        present = all((folder / name).exists() for name in self.files)
        contents = [read(folder / name) for name in self.files] if present else []
        verdict = self.found(*contents) if self.found is not None and present else None
        here, holds = (NOT_RUN, "–") if verdict is None else (verdict[0], "yes" if verdict[1] else "**no**")
        links = ", ".join(f"[{name}](results/{name})" for name in self.files if present)
        run = "; ".join(filter(None, [f"`{self.command}`", *dict.fromkeys(map(_run, contents)), links]))
        return (self.sentence, self.published, here, holds, run)


def claims() -> str:
    """Return the table of all claims."""
    return table(("claim", "published", "here", "holds", "run"), *(claim.row() for claim in CLAIMS))


def _run(found: Any) -> str:
    """Return hardware and minutes of a result, as far as they are recorded."""
    if not isinstance(found, dict):
        return ""
    machine = found.get("environment", found)
    threads = machine["threads"]
    spent = _minutes(found)
    minutes = "" if spent is None else f", {spent:.0f} minutes"
    return f"{machine['device']}, {threads} thread{'s' if threads > 1 else ''}{minutes}"


def _minutes(found: Found) -> float | None:
    """Return the minutes of all runs of a result, one after the other."""
    runs = [*found.get("tests", {}).values(), *found.get("runs", [])]
    if all(isinstance(run, dict) and "minutes" in run for run in runs) and runs:
        return float(sum(run["minutes"] for run in runs))
    if isinstance(found.get("seconds"), dict):
        return float(sum(found["seconds"].values()) / 60)
    return None


def _arxiv(number: str) -> str:
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


_MODULE = "python -m tests.benchmarks."
CLAIMS = (
    Claim(
        sentence="[Soft labels improve small students](#main-job)",
        published=f"69.06 % → 70.66 %, resnet20 on CIFAR-100, {_arxiv('1910.10699')}",
        command="make results",
        files=("wide_sweep.csv",),
        found=lambda runs: verdicts.gains(
            [some["kd"] for some in accuracy.against_baselines(runs).values()]
        ),
    ),
    Claim(
        sentence="[Soft labels help the student of PyTorch's tutorial](#pytorchs-tutorial)",
        published=f"{PUBLISHED['scratch']:.2f} % → {PUBLISHED['tutorial']:.2f} %, one seed, "
        "[tutorial](https://docs.pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html)",
        command=f"{_MODULE}tutorial CIFAR10.npz FOLDER",
        files=("tutorial.json",),
        found=verdicts.tutorial_views,
    ),
    Claim(
        sentence="[Stored logits of exact views train as well as online ones]"
        "(#stored-against-online-labels)",
        published="–",
        command=f"{_MODULE}parity CIFAR10.npz FOLDER --pairs 40",
        files=("parity.json",),
        found=lambda found: verdicts.stored(found, "cached"),
    ),
    Claim(
        sentence="[Four stored views suffice for 15 epochs](#stored-against-online-labels)",
        published=f"80.1 % with 50 views, 80.0 % with 400, ResNet-50 on ImageNet, {_arxiv('2303.08983')}",
        command=f"{_MODULE}parity CIFAR10.npz FOLDER --pairs 40",
        files=("parity.json",),
        found=lambda found: verdicts.stored(found, "cached V=4"),
    ),
    Claim(
        sentence="[Logits of another view than the student's teach less](#stored-against-online-labels)",
        published="78.9 % from a label map per image, 80.1 % from a label per crop, ResNet-50 on ImageNet, "
        + _arxiv("2112.01528"),
        command=f"{_MODULE}parity CIFAR10.npz FOLDER --pairs 40",
        files=("parity.json",),
        found=verdicts.mistake,
    ),
    Claim(
        sentence="[With ten labels per class, soft labels of all images help](#few-labels)",
        published=f"44.5 % → 57.0 % of frames with 3 % of the speech, {_arxiv('1503.02531')}",
        command=f"{_MODULE}hidden_labels",
        files=("hidden_labels.json",),
        found=lambda found: verdicts.gains(accuracy.few_labels_gains(found, 10)),
    ),
    Claim(
        sentence="[A dump teaches a class that was never labelled](#a-class-without-labels)",
        published=f"98.6 % of the unseen threes, bias corrected, {_arxiv('1503.02531')}",
        command=f"{_MODULE}unlabelled_class FOLDER",
        files=("unlabelled_class.json",),
        found=verdicts.unlabelled,
    ),
    Claim(
        sentence="[A weak teacher in the first epochs saves epochs](#early-guidance)",
        published=f"up to 4.8 times fewer epochs, {_arxiv('2604.15451')}",
        command=f"{_MODULE}early_guidance FOLDER",
        files=("early_guidance.json",),
        found=verdicts.guided,
    ),
    Claim(
        sentence="[Tags are learnt better from exact views than from outputs on the clean sample]"
        "(#many-labels)",
        published=f"outputs on clean clips, students on augmented ones: 48.3 mAP, {_arxiv('2211.04772')}",
        command=f"{_MODULE}many_labels FOLDER",
        files=("many_labels.json",),
        found=verdicts.exact_tags,
    ),
    Claim(
        sentence="[Vectors of 16 bytes teach neighbours as well as whole ones](#embeddings)",
        published="8 to 16 bytes a vector: word error rate 15.73 → 13.08 by learning the codes, "
        + _arxiv("2211.00508"),
        command=f"{_MODULE}embeddings CIFAR10.npz PHOTOGRAPHS FOLDER",
        files=("embeddings.json",),
        found=verdicts.small_vectors,
    ),
    Claim(
        sentence="[Newer losses beat `kd`](#every-loss)",
        published=f"73.33 % → 76.32 % (`dkd`), resnet8x4 on CIFAR-100, {_arxiv('2203.08679')}",
        command=f"{_MODULE}loss_table FOLDER",
        files=LOSS_TABLES,
        found=verdicts.newer_losses,
    ),
    Claim(
        sentence="[No loss with its defaults is two standard errors below cross-entropy](#every-loss)",
        published="–",
        command=f"{_MODULE}loss_table FOLDER",
        files=LOSS_TABLES,
        found=verdicts.loss_defaults,
    ),
    Claim(
        sentence="[Students keep their accuracy at a hundredth of the bytes, at T = 1](#accuracy-per-byte)",
        published="–",
        command=f"{_MODULE}accuracy_a_byte PHOTOGRAPHS",
        files=("accuracy_a_byte.json",),
        found=verdicts.accuracy_per_byte,
    ),
    Claim(
        sentence="[1,000 classes need fewer bytes at a smaller error than top-100](#fidelity-and-size)",
        published="404 bytes per view, top-100 of [TinyViT](https://github.com/microsoft/Cream)",
        command=f"{_MODULE}rate_distortion PHOTOGRAPHS",
        files=("rate_distortion.json",),
        found=verdicts.size_of_a_view,
    ),
    Claim(
        sentence="[A dump has 95 % of the bare teacher's speed](#ratios-of-the-main-job)",
        published="–",
        command=f"{_MODULE}main_job",
        files=("main_job.json",),
        found=verdicts.dump_speed,
    ),
    Claim(
        sentence="[Exact views render as fast as torchvision's](#rendering)",
        published="–",
        command=f"{_MODULE}rendering",
        files=("rendering.json",),
        found=verdicts.rendering,
    ),
    Claim(
        sentence="[The loader is faster than each of six others](#loading)",
        published="172,800 images/s on 96 CPUs, 256 pixels, [FFCV](https://github.com/libffcv/ffcv)",
        command=f"{_MODULE}loading --cifar CIFAR10.npz --photographs PHOTOGRAPHS",
        files=("loading.json",),
        found=verdicts.loader,
    ),
    Claim(
        sentence="[An epoch with stored logits takes at most 1.05 cross-entropy epochs](#cost-of-students)",
        published=f"0.84 with four crops per decoded image, {_arxiv('2112.01528')}",
        command=f"{_MODULE}students_cost",
        files=("students_cost.json",),
        found=verdicts.epoch,
    ),
    Claim(
        sentence="[Ten students and their dump take half the time of online ones](#cost-of-students)",
        published="–",
        command=f"{_MODULE}students_cost",
        files=("students_cost.json",),
        found=verdicts.ten_students,
    ),
    Claim(
        sentence="[A dump and a student that follows it take 0.7 of the time of both](#following-a-dump)",
        published="–",
        command=f"{_MODULE}live_dump FOLDER",
        files=("live_dump.json",),
        found=verdicts.live_dump,
    ),
    Claim(
        sentence="[A GPU reaches every aim](#gpus)",
        published="–",
        command=f"{_MODULE}gpu",
        found=verdicts.gpus,
    ),
    Claim(
        sentence="[ResNet-50 from stored logits of exact views on ImageNet](#imagenet-preset)",
        published=f"80.1 %, {_arxiv('2112.01528')}; 81.2 % in 300 epochs, {_arxiv('2303.08983')}",
        command="pipeline preset imagenet-1k --out imagenet.yaml",
    ),
    Claim(
        sentence="[A killed command leaves no trace](#kills-and-damage)",
        published="–",
        command=f"{_MODULE}campaigns",
        files=("campaigns.json",),
        found=verdicts.kills,
    ),
    Claim(
        sentence="[Killed workers of Ray, and a killed command, leave no trace](#kills-and-damage)",
        published="–",
        command=f"{_MODULE}ray_kills FOLDER",
        files=("ray_kills.json",),
        found=verdicts.ray_kills,
    ),
)
