"""Tables of whole jobs: the reduced ImageNet preset and its forecast, writers, buckets, kills, damage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tests.benchmarks.gallery.results import Found, ratio, scientific, table

_IMPORTS = ("prepare", "prepare-encoded", "prepare-more-images", "prepare-texts")
_DUMPS = ("dump", "joined", "second-half", "more-views", "fewer-views", "more-images", "repair")
_OLDER = ("upgrade", "older-more-views", "older-repair")
_RUNS = ("teacher", "student", "baseline", "ensemble", "probe", "report", "export", "export-logits")
_KILLED = {
    "`prepare`, also with `keep: encoded`, with more images, of texts: killed before each change of the "
    "file system": _IMPORTS,
    "`cache-logits`: a dump, one by two jobs, with more views, fewer views, more images, and "
    "`verify --repair`": _DUMPS,
    "a store of schema 3: upgraded, grown, repaired": _OLDER,
    "`train-teacher`, `train-student`, a baseline, an ensemble, a probe, `report`, `export`, "
    "`export-logits`": _RUNS,
}
_RECIPES = ("kd", "dist", "label_smoothing")


def imagenet(found: Found) -> str:
    """Return the reduced run of the preset; from imagenet_smoke.json."""
    dump, seconds = found["dump"], found["seconds"]
    students = {
        student: "; ".join(f"{_student_seconds(seconds, student, recipe):.0f}" for recipe in _RECIPES)
        for student in ("resnet18", "mobilenet_v2")
    }
    stages = ("prepare", "train-teacher lite2", "plan main --samples 1281167 --json", "cache-logits main")
    rows = dump["n_samples"] * dump["n_views"]
    images = rows + dump["test images"]
    speeds = (found["students"][f"main-{name}-kd-0"]["images_per_second"] for name in students)
    return table(
        ("measure", "result"),
        (
            "top-1 of the teacher on the photographs, from stored logits (directly)",
            f"{100 * dump['top-1, from the cache']:.2f} % ({100 * dump['top-1, direct']:.1f} %)",
        ),
        (
            f"the store: `{dump['codec']}`, as {rows:,} rows are too few for the arrays that `features` "
            "stores once",
            f"{dump['bytes_per_sample_view']:,.0f} bytes per view, KL {scientific(dump['kl_t1_mean'])}",
        ),
        (
            f"seconds: `prepare`; `train-teacher`; `plan`; `cache-logits` ({images:,} images)",
            "; ".join(f"{seconds[stage]:.0f}" for stage in stages),
        ),
        (
            "seconds of `train-student`, one epoch of 992 images and evaluation: `resnet18` by "
            + ", ".join(f"`{recipe}`" for recipe in _RECIPES),
            students["resnet18"],
        ),
        ("the same, `mobilenet_v2`", students["mobilenet_v2"]),
        (
            "images/s while training: `resnet18`, `mobilenet_v2`, by `kd`",
            ", ".join(f"{speed:.1f}" for speed in speeds),
        ),
    )


def _student_seconds(seconds: Found, student: str, recipe: str) -> float:
    (found,) = (
        value for command, value in seconds.items() if f"train-student {student} {recipe} 0" in command
    )
    return float(found)


def imagenet_plan(found: Found) -> str:
    """Return the forecast for all of ImageNet; from imagenet_smoke.json."""
    plan = found["plan of all of ImageNet"]["EfficientNet-Lite2"]
    hours, minutes = divmod(round(plan["seconds_estimate"] / 60), 60)
    kl = [scientific(plan[key]) for key in ("kl_t1_mean", "kl_t4_mean")]
    return table(
        ("figure of `plan`", "forecast"),
        ("images of all splits", f"{plan['samples']:,}; {plan['image_bytes']:,} bytes, packed"),
        ("codec", f"`{plan['codec']}`, {plan['bytes_per_sample_view']:.1f} bytes per sample and view"),
        ("KL on the pilot", f"{kl[0]} at T = 1, {kl[1]} at T = 4"),
        ("size of the store", f"{plan['bytes_total']:,} bytes in {plan['files']:,} files"),
        ("forward passes", f"{plan['teacher_forwards']:,}"),
        ("time on this machine", f"{hours} h {minutes} min"),
        ("memory", f"{plan['memory_bytes'] / 1e9:.1f} GB"),
    )


def imagenet_speed(found: Found, precision: str) -> float:
    """Return the images per second of a ResNet-50 with random weights."""
    plan = found["plan of all of ImageNet"]
    return float(plan["ResNet-50 with random weights, images a second"][precision])


def imagenet_hours(found: Found) -> float:
    """Return the hours of all forward passes of the ResNet-50 in bf16."""
    forwards = found["plan of all of ImageNet"]["EfficientNet-Lite2"]["teacher_forwards"]
    return float(forwards / imagenet_speed(found, "bf16") / 3600)


# Several writers, and a store in a bucket.


def writers(found: Found) -> str:
    """Return the starts and races of several writers, in a folder and in a bucket; from writers.json."""
    places = [found[name] for name in ("folder", "bucket")]
    raced = [
        ("raced shards, of these refused by name", "{shards:,}, {shards_named:,}"),
        ("shards of the one, the other, neither writer", "{of_one:,}, {of_the_other:,}, {of_neither:,}"),
        ("faults that `verify` finds in the complete store", "{faults:,}"),
    ]
    begun = [
        ("starts of 8 writers at once", "{trials:,}"),
        ("failed processes, lost or differing files", "{failed_processes:,}, {differing_files:,}"),
    ]
    return table(
        ("count", "folder, `flock` without effect", "bucket"),
        *((title, *(form.format(**place["races"]) for place in places)) for title, form in raced),
        *((title, *(form.format(**place["starts"]) for place in places)) for title, form in begun),
    )


def far_store(found: Found) -> str:
    """Return students that read a store over a slow network; from far_store.json."""
    return table(
        ("measure", "result"),
        ("runs, of these failed", f"{len(found['runs'])}, {found['failed_runs']}"),
        ("requests, of these failed", f"{found['requests']:,}, {found['failed_requests']:,}"),
        ("runs with the weights of a student that read a local folder", f"{found['equal_weights']}"),
        ("share of the time spent waiting for data", _stall(found, "far")),
        ("the same, local folder", _stall(found, "near")),
        ("views read per epoch", ratio(found["views_per_epoch"])),
        ("kilobytes read once per run, e.g. keys", f"{found['once_bytes']['median'] / 1000:,.0f}"),
    )


def far_tars(found: Found) -> str:
    """Return images that stay in tars of a bucket; from far_tars.json."""
    cold = found["cold"]
    return table(
        ("measure", "result"),
        ("cold: requests, chunks of the tars", f"{cold['requests']:,}, {cold['chunks']:,}"),
        ("cold: bytes read ÷ bytes of the tars", f"{cold['bytes_share']:.3f}"),
        ("warm: requests", f"{found['warm_requests']:,}"),
        ("warm: samples/s ÷ those from a local folder", ratio(found["warm_over_local"])),
        ("equal pixels", "yes" if found["equal_views"] else "no"),
    )


def _stall(found: Found, arm: str) -> str:
    return "{median:.4f} [{min:.4f}, {max:.4f}]".format(**found["stall_fraction"][arm])


# Kills and damage: each campaign tells its counts in a line, e.g. "dump: 300 damages, 250 refused, …".


def told(found: Found, test: str) -> Iterator[str]:
    """Yield the line of each campaign of a test; campaigns that failed begin with FAILED."""
    for name, one in found["tests"].items():
        if f"::{test}[" in name:
            yield one["told"] if one["passed"] else f"FAILED: {one['told']}"


def kills(found: Found, names: tuple[str, ...] = (*_IMPORTS, *_DUMPS, *_OLDER, *_RUNS)) -> tuple[int, int]:
    """Return the kills of some campaigns, and how many of them left a trace."""
    made = left = 0
    for line in told(found, "test_no_kill_leaves_a_trace"):
        name, killed, traces = _matched(r"([\w-]+): (\d+) kills, .*: (\d+) left a trace", line)
        if name in names:
            made, left = made + int(killed), left + int(traces)
    return made, left


def campaigns(found: Found) -> str:
    """Return kills, damages and forgeries; from campaigns.json."""
    killed = (
        (title, "{:,} kills, {:,} left a trace".format(*kills(found, of))) for title, of in _KILLED.items()
    )
    dumps = _sum(found, "test_killed_a_hundred_times", r"(\d+) dumps ended, all with equal bytes")
    faults = _sum(found, "test_random_damage_is_refused_and_found", r"^(\d+) faults")
    forged = _sum(found, "test_any_value_of_a_manifest_or_header_ends_in_one_line", r"(\d+) values")
    return table(
        ("campaign", "result"),
        *killed,
        (
            "a dump by one process and by two ranks, killed 100 times each at random moments",
            f"{dumps} dumps finished, all with equal bytes",
        ),
        (
            "random damage to a store (deleted, flipped, swapped, truncated), codecs `affine8` and "
            "`features`",
            f"{faults:,} faults, each refused and found",
        ),
        *_damage(found),
        (
            "each value of a manifest and a header replaced by nonsense",
            f"{forged:,} values, each ends in one line or changes nothing",
        ),
    )


def _damage(found: Found) -> Iterator[tuple[str, str]]:
    """Yield the rows of damaged projects: `verify` refuses all, other commands those that matter.

    A campaign ends at the first damage that changed a result without a word; each such one has a row.
    """
    test = "test_damage_is_refused_or_changes_nothing"
    counts, others = {True: Counter[str](), False: Counter[str]()}, list[str]()
    for line in told(found, test):
        if line.startswith("FAILED"):
            continue
        name, made, refused = _matched(r"([\w-]+): (\d+) damages, (\d+) refused", line)
        counts[name.startswith("verify")].update(made=int(made), refused=int(refused))
        others += [] if name.startswith("verify") else [name]
    yield (
        "damaged project, `verify` and `verify --data`",
        f"{counts[True]['made']:,} damages, {counts[True]['refused']:,} refused",
    )
    yield (
        f"damaged project, other campaigns: {', '.join(sorted(others))}",
        f"{counts[False]['made']:,} damages: {counts[False]['refused']:,} refused, the others changed "
        "nothing",
    )
    for name, one in found["tests"].items():
        if f"::{test}[" in name and not one["passed"]:
            command = name.partition("[")[2].rpartition("-")[0]
            yield f"**damaged project, `{command}`: failed**", _found_in(one["failure"])


def _found_in(failure: str) -> str:
    """Return what a failed campaign found, e.g. a flip in runs/teacher-tutor/metrics.json."""
    match = re.search(r"AssertionError: (\d+): (\w+ in \S+)", failure)
    if match is not None:
        return f"damage {int(match[1]) + 1} changes the result unnoticed: {match[2]}"
    errors = [line[1:].strip() for line in failure.splitlines() if line.startswith("E ")]
    return errors[0] if errors else "no reason is known"


def _sum(found: Found, test: str, pattern: str) -> int:
    return sum(int(_matched(pattern, line)[0]) for line in told(found, test))


def _matched(pattern: str, line: str) -> tuple[str, ...]:
    """Return the groups of a campaign's line.

    Raises:
        ValueError: the campaign failed, or tells something else.
    """
    match = re.search(pattern, line)
    if match is None or line.startswith("FAILED"):
        raise ValueError(f"campaigns.json: expected a passed campaign with '{pattern}', found '{line}'")
    return match.groups()
