"""Render the report as one self-contained HTML page.

Owns the wording and the format of numbers; `page.html.j2` and its parts own the arrangement.
The page loads nothing from elsewhere and names no clock, host or path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.figures import SOFT_TEMPERATURE, Series, curves_svg
from pipeline.report.results import (
    Comparison,
    Estimate,
    Group,
    Outcome,
    Report,
    StudentResults,
    Verdict,
    compare,
)
from pipeline.report.tables import DumpGallery, class_table
from pipeline.tasks.task import Task

# Number formats: per cent, points, sizes, powers of ten.


_NONE = "–"


def percent(value: float | None) -> str:
    """Format a fraction in per cent, without the sign."""
    return _NONE if value is None else f"{100 * value:.2f}"


def points(difference: Estimate) -> str:
    """Format a difference of fractions in percentage points, with its standard error."""
    mean = f"{round(100 * difference.mean, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
    return mean if difference.error is None else tied(f"{mean} ± {100 * difference.error:.2f}")


def number(value: float | None, digits: int = 0) -> str:
    """Format a number with thousands separators."""
    return _NONE if value is None else f"{value:,.{digits}f}"


def metric(value: float | None) -> str:
    """Format a large number with three digits and a metric prefix."""
    if value is None:
        return _NONE
    for prefix in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g} T"


def size(count_bytes: float) -> str:
    """Format a number of bytes in a suitable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "bytes" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} TB"


def scientific(value: float | None) -> str:
    """Format a small number as a power of ten."""
    if value is None:
        return _NONE
    if value == 0:
        return Markup("0")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).replace("-", "\N{MINUS SIGN}")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, power)


def capital(text: str) -> str:
    """Capitalise the first letter of a heading."""
    return f"{text[:1].upper()}{text[1:]}"


def tied(text: str) -> str:
    """Keep a short phrase on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


# Labelled test samples at which the introduction warns that one of them is a percentage point or more.
_FEW = 100
# Students that a headline names one by one.
_IN_A_HEADLINE = 3
Written = Callable[[float | None], str]
# Number format of a task's figures, by the form of their columns.
FORMS: Mapping[str, Written] = {
    "share": percent,
    "nats": partial(number, digits=3),
    "number": partial(number, digits=2),
    "small": scientific,
}
# Heading, column of the results, number format.
COST_COLUMNS: tuple[tuple[str, str, Written], ...] = (
    ("Parameters", "parameters", number),
    ("MACs", "macs", metric),
    ("CPU, ms", "cpu_latency_ms", partial(number, digits=2)),
)
SPEED_COLUMN: tuple[str, str, Written] = ("Samples/s", "images_per_second", number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A drawing of a student's training, with its caption."""

    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The scale for one student's seeds, as fractions of 1."""

    low: float
    high: float

    def place(self, value: float) -> str:
        """Return the position of a value between both ends, as a CSS length."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def width(self, value: float) -> str:
        """Return the length of a difference, as a CSS length."""
        return f"{100 * value / (self.high - self.low):.2f}%"


def render_page(
    report: Report,
    galleries: Mapping[str, DumpGallery],
    *,
    test_images: int,
    leaks: str = "",
    outdated: Mapping[str, Sequence[str]] | None = None,
    weak: Sequence[str] = (),
) -> str:
    """Return the page's HTML.

    Args:
        report: the results.
        galleries: dump -> its gallery.
        test_images: number of test samples behind the accuracies: those with a label.
        leaks: description of equal samples across splits; empty for none.
        outdated: run -> what has changed since it was trained.
        weak: one line for each teacher that falls short.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        write.__name__: write for write in (percent, points, number, size, scientific, metric, capital)
    }
    environment.globals |= {
        "class_table": class_table,
        "compare": compare,
        "columns": columns,
        "main": report.task.columns[0],
        "kept": kept_figure(report.task),
        "compared": [c for c in report.task.columns if c.name in report.task.against_teacher],
        "student_columns": (*own_columns(report, _of_students(report)), SPEED_COLUMN),
        "teacher_columns": own_columns(report, report.teachers.values()),
        "forms": FORMS,
        "network": network,
        "strip": strip,
        "verdict_sentence": partial(verdict_sentence, report, test_images),
    }
    series = {name: Series(index) for index, name in enumerate(report.labels)}
    return environment.get_template("page.html.j2").render(
        report=report,
        galleries=galleries,
        series=series,
        panels={student.name: panels(report, student, series) for student in report.students},
        headline=headline(report),
        lede=lede(report, test_images),
        summary=summary(report),
        leaks=leaks,
        outdated=outdated or {},
        weak=weak,
        soft_temperature=SOFT_TEMPERATURE,
    )


def headline(report: Report) -> str:
    """Write the headline: what teaching gives each student, or else the students and teachers."""
    form, found = FORMS[report.task.columns[0].form], []
    for student in report.students:
        taught, alone = student.best_taught, student.best_baseline
        if taught and alone and taught.main and alone.main:
            figures = f"{form(taught.main.mean)} by {report.label(taught)}, alone {form(alone.main.mean)}"
            found.append(f"{student.name} {tied(figures)}")
    if found and len(found) == len(report.students) <= _IN_A_HEADLINE:
        title = capital(report.task.columns[0].heading)
        return f"{title}, taught by {_teachers(report)}: {'; '.join(found)}"
    names = [student.name for student in report.students]
    who = _listed(names) if len(names) <= _IN_A_HEADLINE else f"{len(names)} students"
    if not report.teachers:
        return f"{who}, without a teacher"
    return f"{who}, trained alone and taught by {_teachers(report)}"


def lede(report: Report, test_images: int) -> str:
    """Write the introduction: ways of training, seeds and test images."""
    groups = list(report.groups)
    alone = list(dict.fromkeys(group.recipe for group in groups if group.dump is None))
    taught = list(dict.fromkeys(report.label(group) for group in groups if group.dump is not None))
    ways = [f"on labels alone ({_listed(alone)})"] if alone else []
    if taught:
        ways.append(f"on cached logits of {_teachers(report)} ({_listed(taught)})")
    seeds = {run.seed for group in groups for run in group.runs}
    count = tied("one seed each" if len(seeds) == 1 else f"{len(seeds)} seeds each")
    is_coarse = _is_coarse(report, test_images)
    one = tied(f"{100 / test_images:.1f} points") if is_coarse else ""
    coarse = f" One test sample is {one}; more seeds do not change that." if is_coarse else ""
    return (
        f"Trained {_listed(ways)}, {count}. Accuracies are measured on {test_images:,} un-augmented test "
        f"samples, which were not used for any choice.{coarse}"
    )


def _is_coarse(report: Report, test_images: int) -> bool:
    """Whether one test sample is a point or more of a main figure that counts right answers."""
    return report.task.columns[0].name == "top1" and 0 < test_images <= _FEW


def summary(report: Report) -> str:
    """Write the numbers of cases in which distillation beats the baselines, and does not."""
    counts = Counter(verdict.outcome for student in report.students for verdict in student.verdicts)
    total = counts.total()
    if not total:
        return "Nothing was distilled: all runs are baselines."
    share = {outcome: tied(f"{counts[outcome]} of {total}") for outcome in get_args(Outcome)}
    sentences: dict[Outcome, str] = {
        "better": "Distillation beats every baseline by more than two standard errors in "
        f"{share['better']} cases.",
        "not_shown": f"It does not in {share['not_shown']}.",
        "worse": f"It is worse than a baseline by the same margin in {share['worse']}.",
        "one_seed": "One seed is not enough to judge: any difference below may be chance.",
        "no_baseline": "There is no baseline for comparison.",
        "unlabelled": "The test samples have no labels, so accuracies cannot be compared.",
    }
    judged = bool(counts["not_shown"] or counts["worse"])
    return " ".join(
        text for outcome, text in sentences.items() if counts[outcome] or (outcome == "better" and judged)
    )


def verdict_sentence(report: Report, test_images: int, verdict: Verdict) -> str:
    """Write whether a distilled group beats the baselines, and by how much."""
    name, comparisons = report.label(verdict.group), verdict.comparisons
    several = len(comparisons) > 1
    only = "" if several or not comparisons else comparisons[0].baseline.recipe
    gains = ", ".join(f"{points(c.difference)} points against {c.baseline.recipe}" for c in comparisons)
    by = "standard errors of the difference"
    seeds = _seeds(comparisons)
    return {
        "better": f"{name} beats {only or 'every baseline'} by more than two {by}: {gains} {seeds}.",
        "not_shown": f"{name} does not beat {only or 'every baseline'} by two {by}: {gains} {seeds}.",
        "worse": f"{name} is worse than {only or 'a baseline'} by more than two {by}: {gains} {seeds}.",
        "one_seed": f"One seed is not enough to judge. {name} has {gains}, which may be chance. "
        f"Add {'test samples, and ' if _is_coarse(report, test_images) else ''}more seeds to sweep.seeds.",
        "no_baseline": f"{name} has no baseline for comparison. Add one to sweep.baselines.",
        "unlabelled": f"{name} cannot be judged: the test samples have no labels.",
    }[verdict.outcome]


def kept_figure(task: Task) -> str:
    """Return the column of the figure that stores keep of their teacher, which `task.accuracy` names."""
    named = (column.name for column in task.columns if column.title == task.accuracy)
    return next(named, task.columns[0].name)


def network(teacher: Mapping[str, Any]) -> str | None:
    """Write a teacher's architecture and where its weights are from; None if unknown.

    >>> network({"model": "resnet18", "weights": None})
    'resnet18, trained from scratch'
    >>> network({"model": "vgg11", "weights": "DEFAULT", "fine_tune": False})
    'vgg11, DEFAULT'
    """
    if "model" not in teacher:
        return None
    weights = teacher["weights"]
    if weights is None:
        return f"{teacher['model']}, trained from scratch"
    return f"{teacher['model']}, {'fine-tuned from ' if teacher['fine_tune'] else ''}{weights}"


def columns(student: StudentResults) -> list[tuple[str, Group]]:
    """Return the baselines of a table with their headings: scratch, and the best one."""
    best, reference = student.best_baseline, student.reference
    if best is None:
        return []
    if reference is None or best == reference:
        return [(f"vs {best.recipe}", best)]
    return [(f"vs {reference.recipe}", reference), ("vs best baseline", best)]


def own_columns(
    report: Report, models: Iterable[Mapping[str, Any]]
) -> tuple[tuple[str, str, Written], ...]:
    """Return the columns for models' other figures and cost, besides the main figure.

    Args:
        report: its task defines the columns.
        models: the models' figures; an optional column is dropped if no model has it.
    """
    task, models = report.task, list(models)
    figures = [
        column
        for column in (*task.columns[1:], *task.mended)
        if column.name not in task.against_teacher
        and (not column.is_optional or any(model.get(column.name) is not None for model in models))
    ]
    return (*((column.heading, column.name, FORMS[column.form]) for column in figures), *COST_COLUMNS)


def _of_students(report: Report) -> list[dict[str, Any]]:
    return [run.row() for group in report.groups for run in group.runs]


def strip(student: StudentResults) -> Strip | None:
    """Return the scale of a student's main figure; None without several seeds to draw."""
    estimates = [group.main for group in student.groups]
    errors = [
        estimate.error for estimate in estimates if estimate is not None and estimate.error is not None
    ]
    values = [run.main for group in student.groups for run in group.runs if run.main is not None]
    if not errors or min(values) == max(values):
        return None
    # Room for the dots, and for error bars longer than the spread of the seeds.
    margin = 0.1 * (max(values) - min(values)) + max(errors)
    return Strip(low=min(values) - margin, high=max(values) + margin)


def panels(report: Report, student: StudentResults, series: Mapping[str, Series]) -> list[Panel]:
    """Draw a student's training curves: the loss, and validation if the data has such a split."""
    kinds: tuple[tuple[Literal["validation", "loss"], str, float], ...] = (
        ("validation", f"Validation {report.task.columns[0].title}, %", 100.0),
        ("loss", "Training loss", 1.0),
    )
    drawn = []
    for column, caption, scale in kinds:
        curves = [(series[report.label(group)], group.curve(column)) for group in student.groups]
        if any(curve for _, curve in curves):
            label = f"{caption} of {student.name} per epoch"
            drawn.append(Panel(caption=caption, svg=Markup(curves_svg(curves, label=label, scale=scale))))  # noqa: S704
    return drawn


def _teachers(report: Report) -> str:
    names = list(report.teachers)
    return "the teacher" if names == ["teacher"] else _listed(names)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _seeds(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    how = "paired" if all(comparison.paired for comparison in comparisons) else "not paired"
    return tied(f"({comparisons[0].difference.count} seeds, {how})")
