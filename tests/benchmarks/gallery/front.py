"""The front page's table of results."""

from __future__ import annotations

from tests.benchmarks.gallery import accuracy, speed
from tests.benchmarks.gallery.results import Found, gain, table

_LOADERS = {"DataLoader + v2": ".0f", "DataLoader + v2, tuned": ".0f", "FFCV": ".1f"}


def glance(
    runs: accuracy.Runs,
    labels: Found,
    parity: Found,
    main_job: Found,
    loading: Found,
    cost: Found,
    *losses: Found,
) -> str:
    """Return one row per claim of the front page.

    Args:
        runs: rows of wide_sweep.csv.
        labels, parity, main_job, loading, cost: content of hidden_labels.json, parity.json, main_job.json,
            loading.json and students_cost.json.
        losses: content of each loss_table_*.json.
    """
    best = [some["kd"] for some in accuracy.against_baselines(runs).values()]
    few = accuracy.few_labels_gains(labels, 10)
    stored = [parity["table"][arm] for arm in ("cached", "cached V=4", "cached V=1")]
    times = [
        format(speed.over_loader(loading, "pad-crop", other), form) for other, form in _LOADERS.items()
    ]
    ten = cost["whole_job"]["by_students"]["10"]["cached_over_online"]
    return table(
        ("measure", "result"),
        (f"`kd` − best baseline, built-in data, {best[0]['seeds']} seeds", _points(best)),
        (f"`kd` − scratch with 10 labels per class, {few[0]['seeds']} seeds", _points(few)),
        (
            f"stored − online labels, V = {parity['epochs']}, 4, 1 (CIFAR-10)",
            f"{', '.join(map(gain, stored))} points",
        ),
        (
            "dump speed ÷ bare forward pass of the teacher",
            f"{main_job['dump_over_bare_forward']['median']:.2f}",
        ),
        (
            "loader, CIFAR-10, two cores",
            "{} × DataLoader as documented, {} × tuned, {} × FFCV".format(*times),
        ),
        ("ten students, dump included ÷ ten online students", f"{ten:.2f} of the time"),
        (
            "losses two standard errors above scratch in all of "
            f"{len(losses) * len(accuracy.STUDENTS)} comparisons",
            _clear_gains(*losses),
        ),
    )


def _points(gains: list[dict[str, float]]) -> str:
    return f"{' and '.join(map(gain, gains))} points"


def _clear_gains(*losses: Found) -> str:
    found = accuracy.clear_gains(*losses)
    every = len(accuracy.measured(list(accuracy.comparisons(*losses))))
    if not found:
        return f"none of {every}"
    named = ", ".join(f"`{name}`" for name in found)
    return f"{named} alone, of {every}" if len(found) == 1 else f"{named}, of {every}"


def top1_of_kd(runs: accuracy.Runs, student: str) -> str:
    """Return a student's top-1 by `kd` in the main job, in percent."""
    return f"{accuracy.arms(runs, student, 'scratch')['kd']['mean']:.2f}"
