"""The `features` codec: fitted to a budget, row by row, for any head, read with numpy alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.codecs import TeacherOutput, codec_fingerprint, find_codec
from pipeline.codecs.features import Shaping
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_features, fit_state
from pipeline.core.errors import ModelError
from pipeline.tasks.classes import CLASSES as TASK

CLASSES, WIDTH, ROWS = 50, 96, 600


@pytest.fixture(scope="module")
def head() -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(WIDTH, CLASSES)
    layer.weight.data = torch.randn(CLASSES, WIDTH, generator=generator) * 0.4
    layer.bias.data = torch.randn(CLASSES, generator=generator)
    return layer


def output(head: nn.Linear, features: torch.Tensor) -> TeacherOutput:
    with torch.no_grad():
        return TeacherOutput(head(features), features)


def random_features(rows: int, seed: int) -> torch.Tensor:
    """Like those behind a ReLU and a pooling: not negative, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, WIDTH, generator=generator) + 0.4).clamp(min=0)


@pytest.fixture(scope="module")
def pilot(head) -> TeacherOutput:
    return output(head, random_features(ROWS, 1))


@pytest.fixture(scope="module")
def unseen(head) -> TeacherOutput:
    return output(head, random_features(ROWS, 2))


@pytest.mark.parametrize("max_kl", [1e-4, 1e-3, 2e-2])
def test_the_budget_is_kept_and_used(head, pilot, unseen, max_kl):
    codec = fit_features(pilot, head, max_kl, TASK)
    for rows, slack in ((pilot, 1.0), (unseen, 1.2)):
        figures = Fidelity.measure(TASK, rows.logits, codec.decode(codec.encode(rows, TASK))).summary()
        worst = max(figures["kl_t1_mean"], figures["kl_t4_mean"])
        assert 0.6 * max_kl < worst < slack * max_kl


def test_shaping_beats_rounding(head, pilot):
    state = fit_state(pilot, head, 1.0)
    shaping = Shaping.of(state, float(state["toll"]))
    weight, bias, table = (state[name] for name in ("weight", "bias", "table"))

    def kl(digits: torch.Tensor) -> float:
        logits = table.T.gather(0, digits) @ weight.T + bias
        return Fidelity.measure(TASK, pilot.logits, logits).summary()["kl_t1_mean"]

    assert kl(shaping.digits(pilot)) < 0.5 * kl(shaping.nearest(pilot.features.double()))


def test_rows_do_not_depend_on_their_batch(head, pilot):
    codec = fit_features(pilot, head, 1e-3, TASK)
    whole = codec.encode(pilot, TASK)["codes"]
    for rows in (slice(0, 1), slice(100, 117), slice(300, 600)):
        assert torch.equal(codec.encode(pilot[rows], TASK)["codes"], whole[rows])


def test_a_state_makes_the_same_codec_again(head, pilot):
    codec = fit_features(pilot, head, 1e-3, TASK)
    again = find_codec("features", CLASSES, {name: values.clone() for name, values in codec.state.items()})
    assert codec_fingerprint(again) == codec_fingerprint(codec)
    assert again.arrays == codec.arrays
    assert torch.equal(again.encode(pilot, TASK)["codes"], codec.encode(pilot, TASK)["codes"])


def test_numpy_alone_can_decode_it(head, pilot):
    """The formula of the module's docstring."""
    codec = fit_features(pilot, head, 1e-3, TASK)
    codes = codec.encode(pilot, TASK)["codes"].numpy()
    state = {name: values.numpy() for name, values in codec.state.items()}
    digits = codes[:, state["byte"]] // state["place"] % state["levels"]
    features = state["table"][np.arange(WIDTH), digits]
    logits = features @ state["weight"].T + state["bias"]
    logits -= logits.max(1, keepdims=True)
    assert np.allclose(logits, codec.decode({"codes": torch.from_numpy(codes)}).numpy(), atol=1e-4)


def test_bytes_do_not_depend_on_the_number_of_classes(head, pilot):
    wide = nn.Linear(WIDTH, 20 * CLASSES)
    wide.weight.data = torch.randn(20 * CLASSES, WIDTH, generator=torch.Generator().manual_seed(5)) * 0.4
    seen = output(wide, pilot.features)
    narrow, codec = fit_features(pilot, head, 1e-3, TASK), fit_features(seen, wide, 1e-3, TASK)
    assert codec.bytes == pytest.approx(narrow.bytes, rel=0.35)
    assert codec.decode(codec.encode(seen, TASK)).shape == (ROWS, 20 * CLASSES)


def test_features_of_every_kind(head):
    """Negative, constant, unused by the head, and far beyond the pilot."""
    features = random_features(ROWS, 3) - 1
    features[:, 5] = 2.5
    features[:, 6] = 0
    layer = nn.Linear(WIDTH, CLASSES)
    layer.weight.data, layer.bias.data = head.weight.clone(), head.bias.clone()
    layer.weight.data[:, 7] = 0
    layer.weight.data[:, 8] = 3.0  # the same for all classes
    seen = output(layer, features)
    codec = fit_features(seen, layer, 1e-3, TASK)
    assert int(codec.state["levels"][7]) == int(codec.state["levels"][8]) == 1
    assert Fidelity.measure(TASK, seen.logits, codec.decode(codec.encode(seen, TASK))).within(1e-3)
    far = output(layer, 3 * features)
    decoded = codec.decode(codec.encode(far, TASK))
    assert decoded.isfinite().all()
    assert (decoded.argmax(1) == far.logits.argmax(1)).float().mean() > 0.6


def test_a_head_without_bias_and_of_two_classes(pilot):
    layer = nn.Linear(WIDTH, 2, bias=False)
    layer.weight.data = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(4))
    seen = output(layer, pilot.features)
    codec = fit_features(seen, layer, 1e-3, TASK)
    assert Fidelity.measure(TASK, seen.logits, codec.decode(codec.encode(seen, TASK))).within(1e-3)


def test_a_teacher_without_features_is_refused(head, pilot):
    with pytest.raises(ModelError, match=r"needs a teacher whose last layer is linear.*codec: auto"):
        fit_features(TeacherOutput(pilot.logits), head, 1e-3, TASK)


def test_no_features_no_codes(head, pilot):
    codec = fit_features(pilot, head, 1e-3, TASK)
    with pytest.raises(ModelError, match="last layer is linear"):
        codec.encode(TeacherOutput(pilot.logits), TASK)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_bytes(head, pilot):
    codec = fit_features(pilot, head, 1e-3, TASK)
    there = TeacherOutput(pilot.logits.cuda(), pilot.require_features().cuda())
    codes = codec.encode(there, TASK)["codes"]
    assert torch.equal(codes.cpu(), codec.encode(pilot, TASK)["codes"])
    assert torch.allclose(
        codec.decode({"codes": codes}).cpu(), codec.decode(codec.encode(pilot, TASK)), atol=1e-3
    )
