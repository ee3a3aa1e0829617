"""Tables of speed: the main job's ratios, rendering, loading, the cost of students."""

from __future__ import annotations

import re

from tests.benchmarks import loading, students_cost
from tests.benchmarks.gallery.results import Found, ratio, table

_RENDERERS = {
    "ours": "**ours**",
    "v2": "torchvision v2 in a loop, from arrays",
    "v2, channels last": "the same from channels-last views",
    "airbench": "airbench",
    "kornia": "kornia (no antialias)",
    "device": "our device renderer, meant for GPUs",
}
_RENDERED = {
    "pad-crop": "pad-crop, 32 px",
    "resized crop": "resized crop, 256 to 224",
    "RandAugment": "the same + RandAugment",
}

_CHAINS = {
    "preset": "the preset's: speed, shift, gain, time mask, frequency mask",
    "without speed": "the same without speed",
    "with noise and polarity": "the same, with background noise and polarity",
}

_WORD_OPERATIONS = ("random_deletion", "random_crop", "mask", "character_noise")
_PADDED = {
    "to the maximum": "the maximum, 128",
    "to the longest": "the longest of a random batch",
    "by length": "the longest of a batch by length",
}


def main_job(found: Found) -> str:
    """Return the ratios of each student; from main_job.json."""
    students = found["students"]
    measures = {
        "loader_over_repeated_batch": "student's images/s with the loader ÷ the same step on one "
        "repeated batch",
        "cached_seconds_over_online": "seconds of a KD epoch with stored logits ÷ an online KD epoch",
        "cached_seconds_over_cross_entropy": "seconds of a KD epoch with stored logits ÷ a "
        "cross-entropy epoch",
    }
    rows = (
        (title, *(ratio(student[key]) for student in students.values())) for key, title in measures.items()
    )
    return table(("measure", *students), *rows)


_STEPS = {
    "open": "open, 1.28 M samples x 300 views",
    "index": "open and read all keys, 14.2 M samples x 89 views",
    "complete": "complete, 1.28 M samples x 300 views",
    "open_ten_views": "open, 1.28 M samples x 10 views",
    "complete_ten_views": "complete the same",
    "done_1000": "find the finished shards of an unfinished store",
    "done_10000": "the same",
    "rows_equal": "rows by key at a student's start, 14.2 M samples in the store's order",
    "rows_shuffled": "the same in another order",
    "status": "`dvc status` of a project with the 1.28 M x 300",
}


def scale(found: Found) -> str:
    """Return CPU seconds, memory and bytes read of each step, before and now; from scale.json."""
    now, before = found["now"], found["before"]
    rows = (
        (title, _shards(now[step]), _cost(before.get(step)), _cost(now[step]))
        for step, title in _STEPS.items()
        if step in now
    )
    return table(("step", "shards", "before: CPU s, MB, MB read", "now"), *rows)


def _shards(one: Found) -> str:
    shards = one.get("shards", one.get("done"))
    return "" if shards is None else f"{shards:,}"


def _cost(one: Found | None) -> str:
    """Return the costs of a step; with a star those that were reported, not measured by the same run."""
    if one is None:
        return ""
    read = "" if one["read_mb"] is None else f", {one['read_mb']:.3g}"
    star = "*" if one.get("reported") else ""
    seconds = format(one["cpu_seconds"], ".0f" if one["cpu_seconds"] >= 10 else ".2g")
    return f"{seconds}, {one['memory_mb']:,.0f}{read}{star}"


def gate_ratio(found: Found, code: str) -> str:
    """Return the time at the gate with 10,000 finished shards ÷ that with 1,000; from scale.json."""
    return f"{found[code]['locks_10000']['held'] / found[code]['locks_1000']['held']:.1f}"


def manifest_megabytes(found: Found, step: str) -> str:
    """Return the size of a large store's manifest; from scale.json."""
    return f"{found['now'][step]['manifest_mb']:.2f}"


def default_ratio(found: Found) -> str:
    """Return the time to open a default store now ÷ before; from scale.json."""
    return f"{found['now']['default']['open_ms'] / found['before']['default']['open_ms']:.2f}"


def rendering(found: Found) -> str:
    """Return images per second by renderer and job, with ours ÷ theirs; from rendering.json."""
    rows = (
        (title, *(_rendered(found[job].get(name), name) for job in _RENDERED))
        for name, title in _RENDERERS.items()
    )
    return table(("", *_RENDERED.values()), *rows)


def _rendered(one: Found | None, name: str) -> str:
    if one is None:
        return "–"
    speed = f"{one['images_a_second']:,}"
    return speed if name == "ours" else f"{speed} ({one['ours_over_it']:.2f})"


def loaders(found: Found, job: str) -> str:
    """Return the loaders of a job; from loading.json."""
    return re.sub(r"\b1 (thread|worker)s", r"1 \1", loading.table(found["jobs"][job]["loaders"]))


def over_loader(found: Found, job: str, other: str) -> float:
    """Return our images per second over another loader's: the ratio of the medians."""
    return float(found["jobs"][job]["loaders"][other]["ours_over_it"]["of_medians"])


def least_over_loaders(found: Found) -> float:
    """Return our images per second over the fastest other loader's, in the worse of the jobs."""
    return min(
        over_loader(found, job, name)
        for job, one in found["jobs"].items()
        for name in one["loaders"]
        if not name.startswith("ours")
    )


def students(found: Found) -> str:
    """Return the ratios of students_cost*.json."""
    return students_cost.table(dict(found))


def sounds(found: Found) -> str:
    """Return views of clips per CPU second; from audio_speed.json."""
    rows = (
        (
            title,
            f"**{found['chains'][name]['ours_views_per_cpu_second']:,}**",
            f"{found['chains'][name]['audiomentations_views_per_cpu_second']:,}",
            ratio(found["chains"][name]["ratio"]),
        )
        for name, title in _CHAINS.items()
    )
    return table(("chain", "ours", "audiomentations", "ratio"), *rows)


def waiting_threads(found: Found) -> str:
    """Return what waiting threads cost a small network; from waiting_threads.json."""
    return table(
        ("a step of a small network: default ÷ short spin", "ratio"),
        ("alone", ratio(found["alone"]["default_over_short"])),
        (f"beside {found['busy']} busy programs", ratio(found["beside"]["default_over_short"])),
    )


def texts(found: Found) -> str:
    """Return times faster than tokenising every view; from text_speed.json."""
    head = ("views", "first time", "strings given", "again, in a later epoch")
    rows = (
        (
            f"`{name}`" if name in _WORD_OPERATIONS else name,
            times(one["over_tokenised"]),
            times(one["over_strings_given"]),
            times(one["again_over_tokenised"]),
        )
        for name, one in found["rendering"].items()
    )
    return table(head, *rows)


def text_batches(found: Found) -> str:
    """Return times faster than padding to the maximum; from text_speed.json."""
    rows = (
        (title, f"{found['batches'][name]['tokens']:,}", times(found["batches"][name]["times_faster"]))
        for name, title in _PADDED.items()
    )
    return table(("batches padded to", "token ids", "times faster"), *rows)


def times(found: Found) -> str:
    """Return a ratio with one digit and the range of the rounds, e.g. `3.4 [3.3, 3.7]`."""
    return f"{found['median']:.1f} [{found['min']:.1f}, {found['max']:.1f}]"
