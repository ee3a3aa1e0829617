"""Every marked table and figure by name, and the tables that stay typed, each with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.benchmarks import (
    early_guidance,
    embeddings,
    loss_defaults,
    many_labels,
    tutorial,
    unlabelled_class,
)
from tests.benchmarks.gallery import accuracy, front, jobs, size, speed
from tests.benchmarks.gallery.claims import CLAIMS, LOSS_TABLES, claims
from tests.benchmarks.gallery.results import Found, Shown, mean, ratio, scientific
from tests.benchmarks.gpu import kept

_DEFAULTS = ("loss_defaults_fashion_mnist.json", "loss_defaults_cifar10.json")


def _shown(make: Callable[..., str], *files: str) -> Shown:
    return Shown(make=make, files=files)


TABLES: Mapping[str, Shown] = {
    "claims": Shown(make=claims),
    "main-job": _shown(accuracy.main_job, "wide_sweep.csv"),
    "tutorial": _shown(lambda found: tutorial.table(found["runs"]), "tutorial.json"),
    "parity": _shown(accuracy.parity, "parity.json"),
    "few-labels": _shown(accuracy.few_labels, "hidden_labels.json"),
    "unlabelled-class": _shown(
        lambda found: unlabelled_class.table(found["runs"]), "unlabelled_class.json"
    ),
    "early-guidance": _shown(lambda found: early_guidance.table(found["runs"]), "early_guidance.json"),
    "many-labels": _shown(lambda found: many_labels.table(found["runs"]), "many_labels.json"),
    "embeddings": _shown(lambda found: embeddings.table(found["runs"]), "embeddings.json"),
    "losses-fashion-mnist": _shown(accuracy.losses, LOSS_TABLES[0], "loss_cost.json"),
    "losses-cifar10": _shown(accuracy.losses, LOSS_TABLES[1]),
    "loss-defaults": _shown(
        lambda *found: loss_defaults.ranking(
            {name: one["runs"] for name, one in zip(("Fashion-MNIST", "CIFAR-10"), found, strict=True)}
        ),
        *_DEFAULTS,
    ),
    "accuracy-per-byte": _shown(accuracy.per_byte, "accuracy_a_byte.json"),
    "formats": _shown(size.formats, "rate_distortion.json"),
    "codecs": _shown(size.codecs, "rate_distortion.json"),
    "many-classes": _shown(size.many_classes, "rate_distortion.json"),
    "few-classes": _shown(size.few_classes, "main_job.json"),
    "features": _shown(size.features, "feature_error.json"),
    "reheading": _shown(size.reheading, "reheading.json"),
    "access": _shown(size.access, "delivery.json", "dump_share.json"),
    "main-job-ratios": _shown(speed.main_job, "main_job.json"),
    "scale": _shown(speed.scale, "scale.json"),
    "rendering": _shown(speed.rendering, "rendering.json"),
    "sounds": _shown(speed.sounds, "audio_speed.json"),
    "texts": _shown(speed.texts, "text_speed.json"),
    "text-batches": _shown(speed.text_batches, "text_speed.json"),
    "loading-cifar10": _shown(lambda found: speed.loaders(found, "pad-crop"), "loading.json"),
    "loading-photographs": _shown(lambda found: speed.loaders(found, "resized crop"), "loading.json"),
    "students-cost": _shown(speed.students, "students_cost.json"),
    "students-cost-resnet8x4": _shown(speed.students, "students_cost_resnet8x4.json"),
    "writers": _shown(jobs.writers, "writers.json"),
    "waiting-threads": _shown(speed.waiting_threads, "waiting_threads.json"),
    "far-store": _shown(jobs.far_store, "far_store.json"),
    "far-tars": _shown(jobs.far_tars, "far_tars.json"),
    "gpu": Shown(make=lambda: kept.readme_table(kept.cards())),
    "imagenet": _shown(jobs.imagenet, "imagenet_smoke.json"),
    "imagenet-plan": _shown(jobs.imagenet_plan, "imagenet_smoke.json"),
    "campaigns": _shown(jobs.campaigns, "campaigns.json"),
    "glance": _shown(
        front.glance,
        *("wide_sweep.csv", "hidden_labels.json", "parity.json", "main_job.json", "loading.json"),
        *("students_cost.json", *LOSS_TABLES),
    ),
}


def _parity(form: Callable[[Found], str]) -> Shown:
    return _shown(form, "parity.json")


def _format(name: str, key: str, part: str = "thousand_classes") -> Shown:
    """Return the bytes, the divergence or the speed of a format."""

    def value(found: Found) -> str:
        number = size.row_of(found, name, part)[key]
        return scientific(number) if key.startswith("kl") else f"{number:,.0f}"

    return _shown(value, "rate_distortion.json")


def _loader(job: str, other: str, form: str) -> Shown:
    return _shown(lambda found: format(speed.over_loader(found, job, other), form), "loading.json")


def _memory(job: str, name: str) -> Shown:
    def megabytes(found: Found) -> str:
        return f"{found['jobs'][job]['loaders'][name]['memory_megabytes']['own']:,}"

    return _shown(megabytes, "loading.json")


def _part(parts: str, form: Callable[[Any], str], file: str) -> Shown:
    """Return the value at a dotted path of a file."""

    def value(found: Found) -> str:
        here: Any = found
        for key in parts.split("."):
            here = here[key]
        return form(here)

    return _shown(value, file)


def _exact(codec: str, key: str, form: Callable[[Any], str]) -> Shown:
    return _part(f"exact.{codec}.{key}", form, "parity.json")


def _resnet50(precision: str) -> Shown:
    return _shown(lambda found: f"{jobs.imagenet_speed(found, precision):.1f}", "imagenet_smoke.json")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _rounded(value: float) -> str:
    """Return one digit of a small number, e.g. 5e-5."""
    return f"{value:.0e}".replace("e-0", "e-")


def _two_digits(value: float) -> str:
    return f"{value:.2g}"


_CURVE, _FIRST = "relative_difference_of_the_loss.mean", "relative_difference_of_the_loss.first"
FIGURES: Mapping[str, Shown] = {
    "gate": _shown(lambda found: speed.gate_ratio(found, "now"), "scale.json"),
    "gate-before": _shown(lambda found: speed.gate_ratio(found, "before"), "scale.json"),
    "manifest-imagenet": _shown(lambda found: speed.manifest_megabytes(found, "open"), "scale.json"),
    "manifest-large": _shown(lambda found: speed.manifest_megabytes(found, "index"), "scale.json"),
    "open-default": _shown(speed.default_ratio, "scale.json"),
    "stored-15": _parity(lambda found: mean(found["table"]["cached"])),
    "online": _parity(lambda found: mean(found["table"]["online"])),
    "loss-of-the-mistake": _parity(lambda found: f"{-found['table']['mistake']['difference']:.2f}"),
    "parity-teacher": _part("teacher_top1", _percent, "parity.json"),
    "logit-fp16": _exact("fp16", "largest_difference_of_a_logit", _two_digits),
    "logit-affine8": _exact("affine8", "largest_difference_of_a_logit", _two_digits),
    "first-loss-fp16": _exact("fp16", _FIRST, _rounded),
    "first-loss-affine8": _exact("affine8", _FIRST, _rounded),
    "curve-fp16": _exact("fp16", _CURVE, _percent),
    "curve-affine8": _exact("affine8", _CURVE, _percent),
    "curve-nudged": _exact("fp16", "the_same_of_a_nudged_run.mean", _percent),
    "kd-shufflenet": _shown(lambda runs: front.top1_of_kd(runs, "shufflenet"), "wide_sweep.csv"),
    "kd-mobilenet": _shown(lambda runs: front.top1_of_kd(runs, "mobilenet"), "wide_sweep.csv"),
    "losses-below": _shown(
        lambda *found: str(sum(one["difference"] < 0 for _, one in accuracy.comparisons(*found))),
        *LOSS_TABLES,
    ),
    "losses-compared": _shown(lambda *found: str(len(list(accuracy.comparisons(*found)))), *LOSS_TABLES),
    "features-bytes": _format("features (0.001)", "bytes"),
    "features-kl": _format("features (0.001)", "kl_t1_mean"),
    "features-encoded": _format("features (0.001)", "encode_rows_per_second"),
    "features-decoded": _format("features (0.001)", "decode_rows_per_second"),
    "tinyvit-bytes": _format("tinyvit-100", "bytes"),
    "tinyvit-kl": _format("tinyvit-100", "kl_t1_mean"),
    "dump-speed": _part("dump_over_bare_forward", ratio, "main_job.json"),
    "step-with-loader": _part(
        "students.shufflenet.loader_over_repeated_batch.median", "{:.2f}".format, "main_job.json"
    ),
    "device-renderer": _part("resized crop.device.images_a_second", str, "rendering.json"),
    "cifar10-over-recipe": _loader("pad-crop", "DataLoader + v2", ".0f"),
    "cifar10-over-tuned": _loader("pad-crop", "DataLoader + v2, tuned", ".0f"),
    "cifar10-over-ffcv": _loader("pad-crop", "FFCV", ".1f"),
    "cifar10-over-airbench": _loader("pad-crop", "airbench", ".1f"),
    "photographs-over-recipe": _loader("resized crop", "DataLoader + v2", ".1f"),
    "photographs-over-tuned": _loader("resized crop", "DataLoader + v2, tuned", ".1f"),
    "photographs-over-ffcv": _loader("resized crop", "FFCV", ".1f"),
    "cifar10-memory": _memory("pad-crop", "ours"),
    "photographs-memory": _memory("resized crop", "ours"),
    "cifar10-memory-ffcv": _memory("pad-crop", "FFCV"),
    "photographs-memory-ffcv": _memory("resized crop", "FFCV"),
    "cifar10-memory-tuned": _memory("pad-crop", "DataLoader + v2, tuned"),
    "photographs-memory-tuned": _memory("resized crop", "DataLoader + v2, tuned"),
    "epoch-over-cross-entropy": _part(
        "cached_seconds_over_cross_entropy.median", "{:.2f}".format, "students_cost.json"
    ),
    "epoch-over-online": _part("cached_seconds_over_online.median", "{:.2f}".format, "students_cost.json"),
    "teacher-over-student": _part(
        "parts.teacher_over_student_forward", "{:.1f}".format, "students_cost.json"
    ),
    "resnet8x4-over-student": _part(
        "parts.teacher_over_student_forward", "{:.1f}".format, "students_cost_resnet8x4.json"
    ),
    "step-over-forward": _shown(
        lambda found: f"{found['parts']['student_step'] / found['parts']['student_forward']:.1f}",
        "students_cost_resnet8x4.json",
    ),
    "resnet50-fp32": _resnet50("fp32"),
    "resnet50-bf16": _resnet50("bf16"),
    "resnet50-hours": _shown(lambda found: f"{jobs.imagenet_hours(found):.0f}", "imagenet_smoke.json"),
    "kills": _shown(lambda found: f"{jobs.kills(found)[0]:,}", "campaigns.json"),
    "campaigns": _shown(lambda found: str(len(found["tests"])), "campaigns.json"),
}

# Head of a table without a mark -> why its figures are typed.
EXCEPTIONS: Mapping[str, str] = {
    "| word | content |": "numbers of images and epochs that define the inputs of the commands",
}


def used_files() -> set[str]:
    """Return the result files that a table, a figure or a claim reads."""
    files = [one.files for one in (*TABLES.values(), *FIGURES.values())] + [one.files for one in CLAIMS]
    return {name for some in files for name in some}
