"""Tables of accuracy: the main job, stored against online labels, few labels, every loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any

from pipeline.losses import LOSSES
from tests.benchmarks import hidden_labels, loss_table
from tests.benchmarks.gallery.results import Found, errors, gain, mean, table
from tests.benchmarks.gallery.size import format_title
from tests.benchmarks.small_students import summary

STUDENTS = {"shufflenet": "`shufflenet_v2_x0_5`", "mobilenet": "`mobilenet_v2`, width 0.35"}
BASELINES = ("scratch", "label_smoothing")
TAUGHT = [name for name, loss in LOSSES.items() if loss.needs_teacher and "softmax" in loss.links]
Runs = Sequence[Mapping[str, Any]]
Arms = dict[str, dict[str, float]]
_PARITY = {
    "online": "online: the teacher in the loop",
    "mistake": "the usual mistake: logits of the clean image, random crops for the student",
    "scratch": "scratch, no teacher",
}


def arms(runs: Runs, student: str, reference: str, top1: str = "top1") -> Arms:
    """Return the summary of one student's recipes, paired by seed with a reference.

    Args:
        runs: with `student`, `recipe`, `seed` and top-1 as a share.
        student: its name in the runs.
        reference: a recipe.
        top1: name of the accuracy in the runs.
    """
    own = sorted((run for run in runs if run["student"] == student), key=lambda run: int(run["seed"]))
    recipes = dict.fromkeys(run["recipe"] for run in own)
    values = {name: [float(run[top1]) for run in own if run["recipe"] == name] for name in recipes}
    return summary(values, reference)


def against_baselines(runs: Runs) -> dict[str, Arms]:
    """Return each student's recipes of the main job, paired with its best baseline."""
    found = {}
    for student in STUDENTS:
        plain = arms(runs, student, "scratch")
        best = max(BASELINES, key=lambda name: plain[name]["mean"])
        found[student] = arms(runs, student, best)
    return found


def main_job(runs: Runs) -> str:
    """Return the students of the main job; from wide_sweep.csv."""
    parameters = {run["student"]: f"{int(run['parameters']):,}" for run in runs}
    head = ("student", "parameters", "scratch", "label smoothing", "kd", "kd − best baseline, paired")
    rows = []
    for student, some in against_baselines(runs).items():
        plain = (mean(some[name]) for name in BASELINES)
        taught = (f"**{mean(some['kd'])}**", gain(some["kd"]))
        rows.append((STUDENTS[student], parameters[student], *plain, *taught))
    return table(head, *rows)


def parity(found: Found) -> str:
    """Return the arms of parity.json, each with its difference to online labels."""
    arms = ["online", *(name for name in found["table"] if name != "online")]
    rows = (
        (_parity_title(arm, found["epochs"]), mean(one), gain(one), str(one["seeds"]))
        for arm, one in ((arm, found["table"][arm]) for arm in arms)
    )
    return table(("soft labels of the student", "top-1", "− online", "seeds"), *rows)


def _parity_title(arm: str, epochs: int) -> str:
    if arm in _PARITY:
        return _PARITY[arm]
    return f"stored, V = {arm.partition('V=')[2] or epochs}"


def few_labels(found: Found) -> str:
    """Return the table of hidden_labels.json, with the students' full names."""
    text = hidden_labels.table(found["runs"])
    for short, full in STUDENTS.items():
        text = text.replace(f"| {short} |", f"| {full} |")
    return text


def few_labels_gains(found: Found, labels: int) -> list[dict[str, float]]:
    """Return the gain of `kd` over scratch with some labels per class, by student."""
    runs = [run for run in found["runs"] if run["labels_per_class"] == labels]
    return [arms(runs, student, "scratch")["kd"] for student in STUDENTS]


def losses(found: Found, costs: Found | None = None) -> str:
    """Return the table of a loss_table_*.json, with a last column from loss_cost.json."""
    lines = loss_table.table(found["runs"]).splitlines()
    if costs is None:
        return "\n".join(lines)
    steps = ["step", "---", *(f"{one['median']:.2f}" for one in costs["over_scratch"].values())]
    return "\n".join(
        f"{line}{step}|" if step == "---" else f"{line} {step} |"
        for line, step in zip(lines, steps, strict=True)
    )


def comparisons(*tables: Found, reference: str = "scratch") -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (loss, its difference to a reference) for each loss with a teacher, data set and student."""
    for found, student in product(tables, STUDENTS):
        some = arms(found["runs"], student, reference, "best")
        # A loss that was added since has no runs yet.
        yield from ((name, some[name]) for name in TAUGHT if name != reference and name in some)


def clear_gains(*tables: Found) -> list[str]:
    """Return the losses that are two standard errors above scratch in every comparison."""
    found = list(comparisons(*tables))
    return [loss for loss in measured(found) if all(errors(one) > 2 for name, one in found if name == loss)]


def measured(found: Sequence[tuple[str, dict[str, float]]]) -> list[str]:
    """Return the losses that occur in comparisons, in the order of the table of losses."""
    names = {name for name, _ in found}
    return [loss for loss in TAUGHT if loss in names]


def per_byte(found: Found) -> str:
    """Return the table of accuracy_a_byte.json, largest format first; online logits have no size."""
    rows = sorted(found["rows"], key=itemgetter("bytes"), reverse=True)
    rows.sort(key=lambda row: row["name"] != "online")
    cells = (
        (
            format_title(row["name"]),
            f"{row['bytes']:,.0f}" if row["bytes"] else "–",
            agreement(row),
            f"{row['kl_to_teacher']:.3f}",
        )
        for row in rows
    )
    return table(("stored as", "bytes", "agreement, %", "KL"), *cells)


def agreement(row: Found) -> str:
    """Return the agreement with the teacher in percent; a single seed has no standard error."""
    error = row["agreement_standard_error"]
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * row['agreement']:.1f}{spread}"
