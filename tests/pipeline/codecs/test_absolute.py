"""Codecs of absolute outputs: of sigmoids, embeddings and scores, whose rows have no constant to drop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.blend import Blend
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.fitting import fit_digits, fit_features
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.embedding import EMBEDDING
from pipeline.tasks.multilabel import MULTILABEL
from pipeline.tasks.scores import SCORES

GENERATOR = torch.Generator().manual_seed(0)
# Rows of any level: a constant per row would be a large part of them.
OUTPUTS = 2 * torch.randn(300, 11, generator=GENERATOR) + 3 * torch.randn(300, 1, generator=GENERATOR)
DENSE = ("fp16", "affine8", "affine6", "affine4")
TASKS = {"multilabel": MULTILABEL, "embedding": EMBEDDING, "scores": SCORES.fitted(OUTPUTS)}
EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@EVERY_TASK
@pytest.mark.parametrize(("name", "most"), [*zip(DENSE, (1e-5, 1e-3, 3e-2, 2e-1), strict=True)])
def test_dense_codecs_keep_every_value(task, name, most):
    codec = find_codec(name, 11, absolute=True)
    decoded = codec.decode(codec.encode(TeacherOutput(OUTPUTS), task))
    assert (decoded.dtype, decoded.shape) == (torch.float32, OUTPUTS.shape)
    assert Fidelity.measure(task, OUTPUTS, decoded).within(most)


@pytest.mark.parametrize("name", DENSE[1:])
def test_the_arrays_tell_whether_values_are_absolute(name):
    relative, absolute = find_codec(name, 11), find_codec(name, 11, absolute=True)
    assert list(relative.arrays) == ["codes", "scale"]
    assert list(absolute.arrays) == ["codes", "scale", "maximum"]
    encoded = absolute.encode(TeacherOutput(OUTPUTS), MULTILABEL)
    # Codes and scales are those of a softmax's row, so only the maximum is added.
    assert torch.equal(encoded["codes"], relative.encode(TeacherOutput(OUTPUTS), CLASSES)["codes"])
    assert torch.equal(encoded["maximum"], OUTPUTS.amax(1))


@pytest.mark.parametrize("name", DENSE)
def test_the_probability_of_a_single_sigmoid_comes_back(name):
    logit = torch.tensor([[3.0], [-2.0]])
    codec = find_codec(name, 1, absolute=True)
    decoded = codec.decode(codec.encode(TeacherOutput(logit), MULTILABEL))
    assert decoded.sigmoid().flatten().tolist() == pytest.approx([0.953, 0.119], abs=1e-3)


@pytest.mark.parametrize("name", DENSE)
def test_values_beyond_a_codec_are_not_clamped_silently(name):
    outputs = torch.tensor([[1e38, -1e38, 0.0], [1.0, 2.0, 3.0]])
    codec = find_codec(name, 3, absolute=True)
    lost = SCORES.diverge(outputs, codec.decode(codec.encode(TeacherOutput(outputs), SCORES)))
    assert lost.isfinite().flatten().tolist() == [False, True]


def test_top_k_is_of_a_softmax_only():
    with pytest.raises(ConfigError, match=r"topk-5.* of one softmax.* expected fp16, .* digits or auto"):
        find_codec("topk-5", 11, absolute=True)


@EVERY_TASK
@pytest.mark.parametrize("budget", [1e-2, 1e-3])
def test_digits_meet_a_budget_with_few_values(task, budget):
    codec = fit_digits(TeacherOutput(OUTPUTS), budget, task)
    decoded = codec.decode(codec.encode(TeacherOutput(OUTPUTS), task))
    found = Fidelity.measure(task, OUTPUTS, decoded)
    assert budget / 4 < found.worst <= budget
    assert torch.equal(codec.features.decode(codec.encode(TeacherOutput(OUTPUTS), task)), decoded)
    again = find_codec("digits", 11, codec.state, absolute=True)
    assert torch.equal(again.decode(codec.encode(TeacherOutput(OUTPUTS), task)), decoded)


def test_digits_of_scores_have_the_step_of_their_unit():
    units = torch.tensor([1.0, 1000.0])
    outputs = units * torch.randn(400, 2, generator=GENERATOR)
    task = SCORES.fitted(outputs)
    codec = fit_digits(TeacherOutput(outputs), 1e-3, task)
    decoded = codec.decode(codec.encode(TeacherOutput(outputs), task))
    errors = (decoded - outputs).square().mean(0).sqrt() / units
    assert float(errors.max() / errors.min()) < 2


def test_an_output_that_never_changes_takes_no_byte_of_its_own():
    outputs = torch.cat([OUTPUTS[:, :1], torch.full((300, 1), 5.0)], 1)
    codec = fit_digits(TeacherOutput(outputs), 1e-3, EMBEDDING)
    assert codec.arrays["codes"].shape == (1,)
    decoded = codec.decode(codec.encode(TeacherOutput(outputs), EMBEDDING))
    assert decoded[:, 1].tolist() == [5.0] * 300


@pytest.mark.parametrize("name", ["multilabel", "scores"])
def test_features_keep_absolute_outputs_within_a_budget(name):
    head = nn.Linear(24, 11)
    with torch.no_grad():
        head.bias += 2
        seen = torch.relu(torch.randn(300, 24, generator=GENERATOR))
        output = TeacherOutput(head(seen), seen)
    task = MULTILABEL if name == "multilabel" else SCORES.fitted(output.logits)
    codec = fit_features(output, head, 1e-3, task)
    decoded = codec.decode(codec.encode(output, task))
    assert Fidelity.measure(task, output.logits, decoded).within(1e-3)
    again = find_codec("features", 11, codec.state, absolute=True)
    assert torch.equal(again.decode(codec.encode(output, task)), decoded)
    assert not (find_codec("features", 11, codec.state).decode(codec.encode(output, task)).amax(1)).any()


@pytest.mark.parametrize(
    "forge",
    [
        lambda state: {k: v for k, v in state.items() if k != "metric"},
        lambda state: {**state, "metric": state["metric"][:-1]},
        lambda state: {**state, "table": state["table"].double()},
        lambda state: {**state, "byte": state["byte"] + 100},
        lambda state: {**state, "toll": state["toll"] * float("nan")},
    ],
)
def test_forged_digits_are_refused(forge):
    state = dict(fit_digits(TeacherOutput(OUTPUTS), 1e-2, EMBEDDING).state)
    with pytest.raises(ValueError, match=r"\w"):
        find_codec("digits", 11, forge(state), absolute=True)


def test_averages_of_sigmoids_and_of_numbers_are_not_those_of_a_softmax():
    a, b = OUTPUTS, OUTPUTS.flip(1)
    blend = Blend(weights=(3, 1), link="sigmoid").blend([a, b])
    expected = 0.75 * a.double().sigmoid() + 0.25 * b.double().sigmoid()
    torch.testing.assert_close(blend.double().sigmoid(), expected, rtol=1e-4, atol=1e-6)
    mean = Blend(average="logits", weights=(3, 1), link="identity").blend([a, b])
    torch.testing.assert_close(mean, 0.75 * a + 0.25 * b)
    far = torch.tensor([[6e4, -6e4]])
    assert bool(Blend(weights=(1, 1), link="sigmoid").blend([far, far.flip(1)]).isfinite().all())


def test_a_budget_has_the_name_of_its_task():
    CodecSpec(name="auto", max_kl=1e-2).require_link(CLASSES.measures)
    CodecSpec(name="auto", max_error=1e-2).require_link(MULTILABEL.measures)
    with pytest.raises(ConfigError, match=r"max_kl is 0.01, .* kl_bernoulli; expected max_error"):
        CodecSpec(name="auto", max_kl=1e-2).require_link(MULTILABEL.measures)
    with pytest.raises(ConfigError, match=r"max_error is 0.01; .* one softmax; expected max_kl"):
        CodecSpec(name="auto", max_error=1e-2).require_link(CLASSES.measures)
    with pytest.raises(ConfigError, match="max_kl and max_error are both set"):
        CodecSpec(name="auto", max_error=1e-2, max_kl=1e-2)
    assert CodecSpec(name="auto").to_dict() == {"name": "auto", "max_kl": None}
    assert CodecSpec(name="digits").needs_pilot
