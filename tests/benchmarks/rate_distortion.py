"""Measure size and error of soft labels, in our codecs and in other systems' formats, on the same logits.

    python -m tests.benchmarks.rate_distortion PHOTOGRAPHS [--views 10] [--cache FILE.pt] [--out FOLDER]

The teacher EfficientNet-Lite2 (see imagenet_teacher.py) runs on random crops of the photographs, scale 0.08
to 1, with flips. Codecs are fitted to views of every second photograph and measured on the rest. Codec
bytes are those of the store's own chunks, with rows in random order. Formats get the views of one
photograph side by side, as in their systems. For many classes, a second head of 21,841 classes uses the
same features: its rows are the real ones plus noise of half their size. Writes rate_distortion.json and
.svg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import nn

from pipeline.codecs import Codec, TeacherOutput, find_codec
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_features
from pipeline.dump.choose_codec import Candidate, Pilot, measure
from pipeline.tasks.classes import CLASSES as TASK
from stages.runtime import keep_freed_memory
from tests.benchmarks.environment import environment
from tests.benchmarks.formats import FORMATS
from tests.benchmarks.imagenet_teacher import efficientnet_lite2, outputs, prepared_photographs

PLAIN = ("fp16", "affine8", "affine6", "affine4", "topk-5", "topk-10", "topk-50", "topk-100", "topk-200")
BUDGETS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2.4e-2, 5e-2, 1.5e-1)
MANY_CLASSES = 21_841
PILOT_ROWS = 1024

Row = dict[str, Any]


def teacher_says(
    photographs: Path, n_views: int, cache: Path | None
) -> tuple[list[TeacherOutput], nn.Linear]:
    """Return the teacher's outputs per view, and its last layer; from the cache if it exists."""
    head = nn.Linear(1, 1)
    if cache is None or not cache.exists():
        with tempfile.TemporaryDirectory() as folder:
            teacher = efficientnet_lite2()
            views = outputs(prepared_photographs(photographs, Path(folder)), teacher, n_views)
        last = teacher.head
        assert last is not None
        saved = {
            "views": [(view.logits, view.features) for view in views],
            "head": (last.weight.detach(), last.bias.detach()),
        }
        if cache is None:
            cache = Path(tempfile.mkstemp(suffix=".pt")[1])
        torch.save(saved, cache)
    saved = torch.load(cache)
    head.weight, head.bias = (nn.Parameter(values) for values in saved["head"])
    return [TeacherOutput(*view) for view in saved["views"]][:n_views], head


def rows_of(views: list[TeacherOutput], photographs: slice) -> TeacherOutput:
    """Return the rows of some photographs, with the views of each side by side."""
    chosen = [view[photographs] for view in views]
    stacked = [torch.stack([getattr(v, name) for v in chosen], 1) for name in ("logits", "features")]
    return TeacherOutput(*(values.flatten(0, 1) for values in stacked))


def shuffled(output: TeacherOutput) -> TeacherOutput:
    """Return the rows in random order: neighbours in a store's chunk are of different photographs."""
    order = torch.randperm(len(output.logits), generator=torch.Generator().manual_seed(0))
    features = None if output.features is None else output.features[order]
    return TeacherOutput(output.logits[order], features)


def of_head(output: TeacherOutput, head: nn.Linear) -> TeacherOutput:
    """Return the output of a different last layer on the same features."""
    with torch.inference_mode():
        return TeacherOutput(head(output.require_features()), output.features)


def codecs(pilot: TeacherOutput, head: nn.Linear) -> Iterator[tuple[str, Codec]]:
    """Yield our codecs, fitted to the pilot if they need it."""
    for name in PLAIN:
        yield name, find_codec(name, pilot.logits.shape[1])
    for budget in BUDGETS:
        yield f"features ({budget:g})", fit_features(pilot, head, budget, TASK)


def figures(fidelity: Fidelity) -> Row:
    """Return a fidelity's figures, rounded to four significant digits."""
    values = {**fidelity.summary(), "kl_t4_p99": fidelity.divergences["kl_t4"].p99}
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def measure_codec(name: str, codec: Codec, output: TeacherOutput) -> Row:
    """Return bytes, error and speed of one of our codecs."""
    found: Candidate = measure(codec, Pilot(output, 1.0), TASK)
    encoded = codec.encode(output, TASK)
    rows = len(output.logits)
    return {
        "name": name,
        "ours": True,
        "bytes": round(found.bytes_per_row, 1),
        **figures(found.fidelity),
        "encode_rows_per_second": round(rows / seconds_of(lambda: codec.encode(output, TASK))),
        "decode_rows_per_second": round(rows / seconds_of(lambda: codec.decode(encoded))),
    }


def seconds_of(work: Any) -> float:
    """Return the duration of the faster of two calls."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_formats(output: TeacherOutput) -> list[Row]:
    """Return bytes and error of other systems' formats, with replay bytes apart."""
    rows = []
    for name, store in FORMATS.items():
        stored = store(output.logits)
        cost = figures(Fidelity.measure(TASK, output.logits, stored.logits_BC))
        rows.append(
            {
                "name": name,
                "ours": False,
                "bytes": round(stored.bytes_per_sample, 1),
                "label_bytes": round(stored.label_bytes, 1),
                **cost,
            }
        )
    return rows


def many_classes(head: nn.Linear) -> nn.Linear:
    """Return a last layer of many classes on the same features."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = head.weight.detach(), head.bias.detach()
    classes = torch.arange(MANY_CLASSES) % len(weight)
    noise = torch.randn(MANY_CLASSES, weight.shape[1], generator=generator)
    wide = nn.Linear(1, 1)
    wide.weight = nn.Parameter(weight[classes] + 0.5 * weight.std() * noise)
    wide.bias = nn.Parameter(bias[classes])
    return wide


def many_classes_rows(pilot: TeacherOutput, test: TeacherOutput, head: nn.Linear) -> list[Row]:
    """Measure our codec and TinyViT's format on 21,841 classes, over half the rows."""
    wide = many_classes(head)
    seen, unseen = of_head(pilot, wide), of_head(test[: len(test.logits) // 2], wide)
    rows = [
        measure_codec(f"features ({b:g})", fit_features(seen, wide, b, TASK), unseen)
        for b in (1e-3, 2.4e-2)
    ]
    stored = FORMATS["tinyvit-100"](unseen.logits)
    cost = figures(Fidelity.measure(TASK, unseen.logits, stored.logits_BC))
    return [*rows, {"name": "tinyvit-100", "ours": False, "bytes": stored.bytes_per_sample, **cost}]


def plot(rows: list[Row], file: Path) -> None:
    """Draw bytes against divergence at both temperatures."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rate_distortion"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharex=True)
    for axis, key, title in zip(axes, ("kl_t1_mean", "kl_t4_mean"), ("T = 1", "T = 4"), strict=True):
        curve = [row for row in rows if row["name"].startswith("features")]
        axis.plot([r["bytes"] for r in curve], [r[key] for r in curve], "o-", color="C0", label="features")
        for family, marker, colour in (("affine", "s", "C2"), ("fp16", "D", "C2"), ("topk", "^", "C1")):
            some = [row for row in rows if row["ours"] and row["name"].startswith(family)]
            axis.plot(
                [r["bytes"] for r in some], [r[key] for r in some], marker, color=colour, label=family
            )
        others = [row for row in rows if not row["ours"] and row["name"] != "torchdistill"]
        axis.plot([r["bytes"] for r in others], [r[key] for r in others], "x", color="C3", label="others")
        for row in others:
            axis.annotate(
                row["name"], (row["bytes"], row[key]), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel="bytes per sample and view")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("mean KL(teacher || stored), nats")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown, largest format first."""
    lines = [
        "| format | bytes | KL, T = 1 | 99th percentile | KL, T = 4 | top-1 kept |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['bytes']:,.0f} | {r['kl_t1_mean']:.1e} | {r['kl_t1_p99']:.1e} | "
        f"{r['kl_t4_mean']:.1e} | {r['top1_agreement']:.3f} |"
        for r in sorted(rows, key=lambda row: -row["bytes"])
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--cache", type=Path, help="file that keeps the teacher's outputs between runs")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    views, head = teacher_says(arguments.photographs, arguments.views, arguments.cache)
    pilot = shuffled(rows_of(views, slice(0, None, 2)))[:PILOT_ROWS]
    side_by_side = rows_of(views, slice(1, None, 2))
    test = shuffled(side_by_side)
    rows = [measure_codec(name, codec, test) for name, codec in codecs(pilot, head)]
    rows += measure_formats(side_by_side)
    wide = many_classes_rows(pilot, test, head)
    print(table(rows), f"\n\n{MANY_CLASSES:,} classes:\n", table(wide), sep="\n")
    result = {
        "environment": environment(),
        "photographs": len(views[0].logits),
        "views": len(views),
        "measured_rows": len(test.logits),
        "thousand_classes": rows,
        "many_classes": wide,
    }
    (arguments.out / "rate_distortion.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, arguments.out / "rate_distortion.svg")


if __name__ == "__main__":
    main()
