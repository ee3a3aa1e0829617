"""The figures of each claim, and whether it holds: a gain or a loss counts from two standard errors on."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks import early_guidance, embeddings, many_labels, tutorial, unlabelled_class
from tests.benchmarks.gallery import accuracy, jobs, size, speed
from tests.benchmarks.gallery.results import Found, errors, gain, mean, ratio, scientific
from tests.benchmarks.gpu import kept
from tests.benchmarks.gpu.steps import AIMS
from tests.benchmarks.small_students import summary

Verdict = tuple[str, bool]


def gains(some: Sequence[Found]) -> Verdict:
    """Return gains in points, which hold if each is two standard errors above zero."""
    return f"{' and '.join(map(gain, some))} points", all(errors(one) > 2 for one in some)


def stored(found: Found, arm: str) -> Verdict:
    """Return an arm of parity.json, which holds if it is within two standard errors of online labels."""
    one = found["table"][arm]
    return f"{mean(one)} %; {gain(one)} points to online", abs(errors(one)) <= 2


def mistake(found: Found) -> Verdict:
    """Return the logits of the clean image in parity.json, which are to lose."""
    one = found["table"]["mistake"]
    return f"{mean(one)} %; {gain(one)} points to online", errors(one) < -2


def newer_losses(*tables: Found) -> Verdict:
    """Return three newer losses against `kd`; holds if one of them gains in each comparison."""
    found = list(accuracy.comparisons(*tables, reference="kd"))
    told, holds = [], False
    for loss in ("dkd", "dist", "kd_ls"):
        some = sorted((one for name, one in found if name == loss), key=lambda one: one["difference"])
        told.append(f"`{loss}` {gain(some[0])} to {gain(some[-1])}")
        holds |= all(errors(one) > 2 for one in some)
    return f"{', '.join(told)} points to `kd`", holds


def loss_defaults(*tables: Found) -> Verdict:
    """Return how many comparisons of every loss lose to cross-entropy, and the worst."""
    found = list(accuracy.comparisons(*tables))
    below = [(loss, one) for loss, one in found if errors(one) < -2]
    worst, one = min(found, key=lambda pair: pair[1]["difference"])
    told = f"{len(below)} of {len(found)} comparisons are below; worst `{worst}`, {gain(one)} points"
    return told, not below


def tutorial_views(found: Found) -> Verdict:
    """Return the gain of `kd` with exact views over cross-entropy with the same views."""
    runs = [run for run in found["runs"] if run["images"] == "views"]
    arms = {name: [run["top1"] for run in runs if run["recipe"] == name] for name in tutorial.RECIPES}
    some = summary(arms, "scratch")
    scratch, kd = mean(some["scratch"]), mean(some["kd"])
    return f"{scratch} % and {kd} %, {gain(some['kd'])} points", errors(some["kd"]) > 2


def guided(found: Found) -> Verdict:
    """Return how many times fewer epochs guided students take to the target, by student."""
    speedups = []
    for student in dict.fromkeys(run["student"] for run in found["runs"]):
        own = [run for run in found["runs"] if run["student"] == student]
        epochs = early_guidance.epochs_by_recipe(own)
        speedups.append(sum(epochs["scratch"]) / sum(epochs["guided"]))
    return f"{' and '.join(f'{one:.1f}' for one in speedups)} times fewer epochs", min(speedups) > 1


def unlabelled(found: Found) -> Verdict:
    """Return each distilled student's recall of the hidden class, paired with that from labels alone."""
    students = dict.fromkeys(run["student"] for run in found["runs"])
    recalls = [accuracy.arms(found["runs"], student, "scratch", "recall")["kd"] for student in students]
    name = unlabelled_class.HIDDEN
    return f"recall of {name} {' and '.join(map(mean, recalls))} %", all(errors(one) > 2 for one in recalls)


def exact_tags(found: Found) -> Verdict:
    """Return exact views and the outputs of the clean sample, paired by seed."""
    some = many_labels.by_arm(found["runs"], "clean")
    exact, clean = mean(some["exact"]), mean(some["clean"])
    told = f"mAP {exact} % and {clean} %, {gain(some['exact'])} points"
    return told, errors(some["exact"]) > 2


def small_vectors(found: Found) -> Verdict:
    """Return the neighbours of students of `pq-16` and of fp16, which are to be as good."""
    runs = {
        arm: [run for run in found["runs"] if run["arm"] == arm] for arm in ("pq-16", embeddings.SOURCE)
    }
    some = summary({arm: [run["knn"] for run in own] for arm, own in runs.items()}, embeddings.SOURCE)
    small, whole = (some[arm] for arm in runs)
    bytes_each = " and ".join(f"{own[0]['bytes']:,.0f}" for own in runs.values())
    told = f"kNN {mean(small)} % and {mean(whole)} % from {bytes_each} bytes, {gain(small)} points"
    return told, errors(small) > -2


def size_of_a_view(found: Found) -> Verdict:
    """Return `features` at max_kl 1e-3 and TinyViT's top-100, which has to be larger and less exact."""
    ours, theirs = (size.row_of(found, name) for name in ("features (0.001)", "tinyvit-100"))
    told = " ".join(
        f"{one['bytes']:,.0f} bytes at KL {scientific(one['kl_t1_mean'])}{rest}"
        for one, rest in ((ours, ";"), (theirs, " in TinyViT's format"))
    )
    return told, all(ours[key] < theirs[key] for key in ("bytes", "kl_t1_mean"))


def accuracy_per_byte(found: Found) -> Verdict:
    """Return the agreement from `topk-5` and from `fp16`, which are to lie within two standard errors."""
    rows = {row["name"]: row for row in found["rows"]}
    small, whole = rows["topk-5"], rows["fp16"]
    told = (
        f"agreement {accuracy.agreement(small)} % at {small['bytes']:.0f} bytes, "
        f"{accuracy.agreement(whole)} % at {whole['bytes']:,.0f}"
    )
    spread = sum(one["agreement_standard_error"] ** 2 for one in (small, whole)) ** 0.5
    return told, whole["agreement"] - small["agreement"] <= 2 * spread


def epoch(found: Found) -> Verdict:
    """Return the time of an epoch with stored logits over a cross-entropy epoch's."""
    one = found["cached_seconds_over_cross_entropy"]
    return f"{ratio(one)} of its time", one["median"] <= 1.05


def ten_students(found: Found) -> Verdict:
    """Return the time of a dump and ten students over that of ten online students."""
    one = found["whole_job"]["by_students"]["10"]
    told = f"{one['cached_over_online']:.2f} of the time (bound {one['bound']:.2f})"
    return told, one["cached_over_online"] < 0.5


def live_dump(found: Found) -> Verdict:
    """Return the time of a dump and a student that follows it over that of both in turn."""
    one = found["at_once_over_one_after_the_other"]
    told = f"{ratio(one)} of the time (bound {found['bound']:.2f})"
    return told, one["median"] <= 0.7 and found["same_weights"]


def dump_speed(found: Found) -> Verdict:
    """Return the speed of a dump over the teacher's bare forward pass."""
    one = found["dump_over_bare_forward"]
    return f"{ratio(one)} of its speed", one["median"] >= 0.95


def loader(found: Found) -> Verdict:
    """Return our speed over FFCV's; holds if no other loader is faster in any job."""
    times = [speed.over_loader(found, job, "FFCV") for job in ("pad-crop", "resized crop")]
    told = f"{times[0]:.1f} and {times[1]:.1f} times FFCV on two cores"
    return told, speed.least_over_loaders(found) > 1


def rendering(found: Found) -> Verdict:
    """Return our speed over the faster way of torchvision, by job."""
    times = [found[job]["v2, channels last"]["ours_over_it"] for job in ("pad-crop", "resized crop")]
    last = found["RandAugment"]["v2, channels last"]["ours_over_it"]
    told = f"{times[0]:.1f} and {times[1]:.1f} times torchvision v2, {last:.2f} with RandAugment"
    return told, min(*times, last) >= 1


def kills(found: Found) -> Verdict:
    """Return the kills of all campaigns, none of which may leave a trace."""
    made, left = jobs.kills(found)
    return f"{made:,} kills, {left:,} left a trace", left == 0


def ray_kills(found: Found) -> Verdict:
    """Return the kills of workers and commands, and files of stores that differ from one process's."""
    places = [found["folder"], found["bucket"]]
    workers, commands, differing = (
        sum(one[name] for one in places) for name in ("kills", "driver_kills", "differing_files")
    )
    told = f"{workers} and {commands} kills, {differing} of {2 * found['files']} files differ"
    bounded = all(
        one["units_made"] <= found["units"] + one["kills"] + one["workers_lost"] for one in places
    )
    return told, differing == 0 and bounded


def gpus() -> Verdict | None:
    """Return how many aims each card reaches; none while no card was measured."""
    rows = {
        card: [row for one in found for row in one.get("rows", [])] for card, found in kept.cards().items()
    }
    if not rows:
        return None
    reached = {card: sum(row["holds"] for row in some) for card, some in rows.items()}
    told = ", ".join(f"{card}: {count} of {len(AIMS)}" for card, count in reached.items())
    return told, min(reached.values()) == len(AIMS)
