"""The losses by name, and a loss from a name and settings. A new one is a function and a line here.

A recipe may also name the user's own code, `loss: package.module:NAME`: see `own_code.py`. Only recipes
from params.yaml reach this module; names of losses in a run, a card or a store do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.codecs import has_codewords, is_own_codec
from pipeline.codecs.rule import Measures
from pipeline.codecs.spec import FEATURES
from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.own_code import is_own
from pipeline.core.progress import note
from pipeline.losses.features import CentreProjection, ContrastProjection, centre, crd, rkd
from pipeline.losses.logits import dist, hard, kd, kd_ls, label_smoothing, mse, scratch, soft_ce, wttm
from pipeline.losses.outputs import (
    bce,
    binary_kd,
    codes,
    cosine,
    l2,
    relational,
    smooth_l1,
    squared_error,
)
from pipeline.losses.own_code import fill_own, own_loss
from pipeline.losses.settings import (
    FeatureNeeds,
    Loss,
    Schedule,
    ScheduledLoss,
    number_or_schedule,
    require_settings,
    settings_of,
)
from pipeline.losses.target_classes import dkd, nkd, wsld

# The settings of the papers' authors, for 100 to 300 epochs at their learning rates: `preset: paper`.
_OF_FEATURES = {"temperature": 4, "ce_weight": 1, "kd_weight": 0}
PAPER: Mapping[str, Mapping[str, Any]] = {
    "dkd": {
        "temperature": 4,
        "alpha": 1,
        "beta": 8,
        "ce_weight": 1,
        "kd_weight": {"warmup": 1, "epochs": 20},
    },
    "nkd": {"temperature": 1, "gamma": 1.5, "ce_weight": 1, "kd_weight": 1},
    "wsld": {"temperature": 2, "ce_weight": 1, "kd_weight": 2.5},
    "dist": {"temperature": 4, "ce_weight": 1, "inter_weight": 2, "intra_weight": 2},
    "kd_ls": {"temperature": 2, "ce_weight": 0.1, "kd_weight": 9},
    "wttm": {"gamma": 0.2, "ce_weight": 1, "kd_weight": 4},
    "crd": {**_OF_FEATURES, "feature_weight": 0.8, "contrast_temperature": 0.07},
    "rkd": {**_OF_FEATURES, "distance_weight": 25, "angle_weight": 50},
    "centre": {**_OF_FEATURES, "feature_weight": 0.003},
}
LOSSES: Mapping[str, Loss] = {
    "scratch": Loss(scratch, needs_teacher=False, row_wise=True),
    "label_smoothing": Loss(label_smoothing, needs_teacher=False, row_wise=True),
    "kd": Loss(kd, needs_teacher=True, row_wise=True),
    "soft_ce": Loss(soft_ce, needs_teacher=True, row_wise=True),
    "hard": Loss(hard, needs_teacher=True, row_wise=True),
    "mse": Loss(mse, needs_teacher=True, row_wise=True),
    "dkd": Loss(
        dkd, needs_teacher=True, schedules={"kd_weight": Schedule.warmup(1.0, share=1 / 12)}, row_wise=True
    ),
    "nkd": Loss(nkd, needs_teacher=True, row_wise=True),
    "wsld": Loss(wsld, needs_teacher=True, one_target=True, row_wise=True),
    "dist": Loss(dist, needs_teacher=True),
    "kd_ls": Loss(kd_ls, needs_teacher=True, row_wise=True),
    "wttm": Loss(wttm, needs_teacher=True, row_wise=True),
    # The authors' 16,384 come from a memory, which makes them free; these are decoded in each step.
    "crd": Loss(
        crd, needs_teacher=True, features=FeatureNeeds(projection=ContrastProjection, negatives=4096)
    ),
    "rkd": Loss(rkd, needs_teacher=True, features=FeatureNeeds()),
    "centre": Loss(
        centre, needs_teacher=True, features=FeatureNeeds(projection=CentreProjection, centres=True)
    ),
    # Of absolute outputs: many labels, scores, embeddings.
    "bce": Loss(bce, needs_teacher=False, links=("sigmoid",), row_wise=True),
    "binary_kd": Loss(binary_kd, needs_teacher=True, links=("sigmoid",), row_wise=True),
    "squared_error": Loss(squared_error, needs_teacher=False, links=("identity",), row_wise=True),
    "l2": Loss(l2, needs_teacher=True, links=("sigmoid", "identity"), projects=True),
    "smooth_l1": Loss(smooth_l1, needs_teacher=True, links=("sigmoid", "identity"), projects=True),
    "cosine": Loss(cosine, needs_teacher=True, links=("identity",), projects=True),
    "relational": Loss(relational, needs_teacher=True, links=("identity",)),
    "codes": Loss(codes, needs_teacher=True, links=("identity",), projects=True, reads_codes=True),
}
# Losses that see little of a teacher of two classes, and the reason: see `require_outputs`.
_BLIND: Mapping[str, str] = {
    "kd_ls": "two standardised logits are 1 and -1, whatever the teacher's confidence",
}
_NEARLY_BLIND: Mapping[str, str] = {
    "dist": "the correlation of two probabilities is 1 or -1, so its rows tell nothing of the confidence",
    "dkd": "one class is left beside the label's, so its second term is always 0",
}


def require_outputs(name: str, measures: Measures, n_outputs: int, task: str) -> None:
    """Refuse a loss of other outputs than the task's, or one that is blind with two classes.

    Args:
        name: of the loss.
        measures: of the task.
        n_outputs: C.
        task: name of the task, for the message.

    Raises:
        ConfigError: says which losses fit.
    """
    loss = find_loss(name)
    if measures.link not in loss.links:
        fitting = [other for other, one in LOSSES.items() if measures.link in one.links]
        raise ConfigError(
            f"loss {name} is of a {' or '.join(loss.links)}, and outputs of task {task} are of a "
            f"{measures.link}; expected one of {', '.join(fitting)}; choose another loss"
        )
    if n_outputs == 2 and name in _BLIND:
        raise ConfigError(
            f"loss {name} needs more than two classes: {_BLIND[name]}; expected another loss, e.g. kd; "
            "change the recipe"
        )
    if n_outputs == 2 and name in _NEARLY_BLIND:
        note(f"loss {name} has two classes: {_NEARLY_BLIND[name]}; kd loses nothing")


def require_targets(name: str, where: str, *, mixes: bool) -> None:
    """Refuse a loss that needs one class per sample, if the views mix images.

    Args:
        name: of the loss.
        where: the owner of the student's views, for the message.
        mixes: whether these views mix samples.

    Raises:
        ConfigError: says how to change it.
    """
    if find_loss(name).one_target and mixes:
        mixable = [other for other, loss in LOSSES.items() if loss.needs_teacher and not loss.one_target]
        raise ConfigError(
            f"loss {name!r} needs one class per sample, but the views of {where} mix samples (mixup, "
            f"cutmix); choose a different dump, or one of these losses: {', '.join(mixable)}"
        )


def require_kept(name: str, codecs: Sequence[str], where: str) -> None:
    """Refuse a loss that compares features or learns codewords, if the dump keeps none.

    A single codec of user code may keep features: only the open store can tell.

    Args:
        name: of the loss.
        codecs: of the dump, or of the averaged dumps.
        where: name of the dump, for the message.

    Raises:
        ConfigError: says how to change it.
    """
    loss = find_loss(name)
    found = f"averages {len(codecs)} dumps" if len(codecs) > 1 else f"has codec {codecs[0]}"
    if loss.reads_codes and (len(codecs) > 1 or not has_codewords(codecs[0])):
        raise ConfigError(
            f"loss {name!r} learns codewords, but {where} {found}; expected one dump with codec pq-M or "
            "rvq-M, e.g. pq-16; re-dump with it, or choose another loss, e.g. cosine"
        )
    if loss.features is None or (len(codecs) == 1 and is_own_codec(codecs[0])):
        return
    if list(codecs) != [FEATURES]:
        others = [other for other, loss in LOSSES.items() if loss.needs_teacher and loss.features is None]
        raise ConfigError(
            f"loss {name!r} needs teacher features, but {where} {found}; expected one dump whose codec "
            f"keeps features; re-dump with codec: {FEATURES}, or choose one of these losses: "
            f"{', '.join(others)}"
        )


def find_loss(name: str) -> Loss:
    """Return a loss from the table, or import one from the user's own code.

    Raises:
        ConfigError: no loss has this name.
    """
    if name in LOSSES:
        return LOSSES[name]
    if is_own(name):
        return own_loss(name)
    raise ConfigError(
        f"loss is {name!r}; expected one of {', '.join(LOSSES)}, or your own "
        f"package.module:NAME{did_you_mean(name, LOSSES)}"
    )


def make_loss(name: str, settings: Mapping[str, Any]) -> ScheduledLoss:
    """Return a loss from the table, or from the user's own code, with its settings filled in.

    Args:
        name: of the loss.
        settings: a number each, or a schedule in its form in params.yaml: see `Schedule.parse`; the user's
            own losses may take other plain values.

    Raises:
        ConfigError: unknown loss, unknown setting or a value out of range.

    """
    loss = find_loss(name)
    return fill(name, loss, settings) if name in LOSSES else fill_own(name, loss, settings)


def fill(name: str, loss: Loss, settings: Mapping[str, Any]) -> ScheduledLoss:
    """Return a line of the table, of this name, with its settings filled in.

    The setting `preset: paper` stands for the settings in `PAPER`; other keys override them.
    """
    chosen = {key: value for key, value in settings.items() if key != "preset"}
    if "preset" in settings:
        chosen = {**_preset(name, settings["preset"]), **chosen}
    accepted = settings_of(loss.function)
    require_settings(name, chosen, [*accepted, *(["preset"] if name in PAPER else [])])
    given = {key: number_or_schedule(name, key, value, accepted[key]) for key, value in chosen.items()}
    return ScheduledLoss(
        loss.function,
        {**loss.schedules, **given},
        features=loss.features,
        projects=loss.projects,
        row_wise=loss.row_wise,
        reads_codes=loss.reads_codes,
    )


def _preset(name: str, preset: object) -> Mapping[str, Any]:
    if preset != "paper" or name not in PAPER:
        expected = "paper" if name in PAPER else "no preset: its defaults are the paper's"
        raise ConfigError(f"loss {name} has the preset {preset!r}; expected {expected}")
    return PAPER[name]
