"""Tables of size: bytes and errors of formats, stored features, access to stored rows."""

from __future__ import annotations

import re

from tests.benchmarks import rate_distortion
from tests.benchmarks.gallery.results import Found, scientific, table

_THEIRS = {
    "online": "the teacher's own logits",
    "tinyvit": "TinyViT, top-{}",
    "fkd": "FKD, top-{}",
    "ml-dr": "ml-dr, top-{}",
    "distillkit": "DistillKit, k = {}",
    "torchdistill": "torchdistill, a file per view",
}


def format_title(name: str) -> str:
    """Return a codec or format as readers know it.

    >>> format_title("features (0.001)"), format_title("tinyvit-100 (theirs)"), format_title("topk-5")
    ('`features`, max_kl 1e-3', 'TinyViT, top-100', '`topk-5`')
    >>> format_title("distillkit-128-fp64")
    'DistillKit, k = 128, fp64'
    """
    name = name.removesuffix(" (theirs)")
    budget = re.fullmatch(r"features \((.*)\)", name)
    if budget:
        return f"`features`, max_kl {_budget(float(budget[1]))}"
    system = next((system for system in _THEIRS if name.startswith(system)), None)
    if system is None:
        return f"`{name}`"
    kept, _, rest = name.removeprefix(system).lstrip("-").partition("-")
    return _THEIRS[system].format(kept) + (f", {rest}" if rest else "")


def _budget(value: float) -> str:
    """Return 0.001 as 1e-3, 0.024 as 2.4e-2, and larger values as they are."""
    if value >= 0.1:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def row_of(found: Found, name: str, part: str = "thousand_classes") -> Found:
    """Return the row of a format in rate_distortion.json."""
    rows: list[Found] = found[part]
    (row,) = (row for row in rows if row["name"] == name)
    return row


def formats(found: Found) -> str:
    """Return all codecs and formats of rate_distortion.json, largest first."""
    rows = [{**row, "name": format_title(row["name"])} for row in found["thousand_classes"]]
    return rate_distortion.table(rows)


def codecs(found: Found) -> str:
    """Return a choice of our codecs from rate_distortion.json, largest first."""
    chosen = ("fp16", "affine8", "features (0.001)", "topk-100", "features (0.024)")
    rows = (
        (format_title(row["name"]), f"{row['bytes']:,.0f}", scientific(row["kl_t1_mean"]))
        for row in (row_of(found, name) for name in chosen)
    )
    return table(("C = 1,000, D = 1,280", "bytes per sample and view", "KL at T = 1"), *rows)


def many_classes(found: Found) -> str:
    """Return the formats of rate_distortion.json for a wide last layer."""
    rows = [{**row, "name": format_title(row["name"])} for row in found["many_classes"]]
    return rate_distortion.table(rows)


def few_classes(found: Found) -> str:
    """Return bytes and divergence of the main job's ten classes; from main_job.json."""
    rows = (
        (
            f"`{name}`",
            f"{one['bytes_per_sample_view']:.1f}",
            *(f"{one[key]:.1e}" for key in ("kl_t1_mean", "kl_t4_mean")),
            f"{one['top1_agreement']:.3f}",
        )
        for name, one in found["codecs"].items()
    )
    return table(("codec", "bytes", "KL, T = 1", "KL, T = 4", "top-1 kept"), *rows)


def features(found: Found) -> str:
    """Return the error of stored features; from feature_error.json."""
    rows = (
        (
            _budget(row["max_kl"]),
            f"{row['bytes_per_sample_view']:.1f}",
            f"{row['relative_error']:.2f}",
            f"{row['distance_correlation']:.4f}",
        )
        for row in found["rows"]
    )
    errors = ("error ÷ spread of the features", "correlation of distances between samples")
    return table(("`max_kl`", "bytes per view", *errors), *rows)


def reheading(found: Found) -> str:
    """Return agreement and divergence of re-headed dumps; from reheading.json."""
    rows = (
        (
            row["dump"],
            f"{row['bytes_per_sample_view']:.1f}",
            row["head"],
            f"{row['agreement']:.4f}",
            f"{row['kl_t1']:.1e}",
            f"{row['estimated_kl_t1']:.1e}",
        )
        for row in found["rows"]
    )
    figures = ("agreement with the teacher", "KL, T = 1", "estimated by the dump")
    return table(("dump", "bytes per view", "head", *figures), *rows)


def access(delivery: Found, dump: Found) -> str:
    """Return the cost of stored rows; from delivery.json and dump_share.json."""
    over, opening, decoding = (
        delivery[key] for key in ("ours_over", "opening", "decoding_share_of_a_step")
    )
    large, small = (opening[count]["open_milliseconds"] for count in ("1,000,000", "10,000"))
    features, affine = (dump["codecs"][name] for name in ("features", "affine6"))
    made = [one["encode_share"] + one["compare_share"] for one in (features, affine)]
    return table(
        ("measure", "result"),
        (
            "random batches of encoded rows, samples/s on one core ÷ gather from a memory-mapped file",
            f"{over['memory-mapped file']:.2f}",
        ),
        (
            "the same ÷ one file per sample; ÷ zarr's fancy indexing",
            f"{over['file a sample']:,.0f}; {over['zarr fancy indexing']:,.0f}",
        ),
        ("opening a store of a million samples; of ten thousand", f"{large} ms; {small} ms"),
        (
            "decoding ÷ training step of a ResNet-18 at 224 pixels, one core: `features`; `topk-100`",
            f"{100 * decoding['features']:.2f} %; {100 * decoding['topk-100']:.3f} %",
        ),
        (
            "share of a dump with a ResNet-50: encoding and comparing, `features`; `affine6`",
            f"{100 * made[0]:.1f} %; {100 * made[1]:.2f} %",
        ),
        ("the same: writing, in a thread, `features`", f"{100 * features['write_share']:.1f} %"),
    )
