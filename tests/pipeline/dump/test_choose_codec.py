"""Choosing a codec by what the pilot says, and keeping the choice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fitting import fit_features
from pipeline.codecs.spec import CodecSpec
from pipeline.core.errors import ConfigError, MismatchError, ModelError
from pipeline.dump.choose_codec import Pilot, choose_codec, measure, pilot_rows, run_pilot
from pipeline.dump.run import cache_logits
from pipeline.store.lock import Slice
from pipeline.store.reader import LogitStore
from pipeline.tasks.classes import CLASSES as TASK
from tests.pipeline.dump.test_growth import content

CLASSES = 60


@pytest.fixture(scope="module")
def pilot() -> Pilot:
    logits = 2 * torch.randn(512, CLASSES, generator=torch.Generator().manual_seed(0))
    return Pilot(TeacherOutput(logits), 1.0)


def choose(pilot: Pilot, name: str = "auto", max_kl: float | None = None, head=None, rows: int = 10**6):
    return choose_codec(CodecSpec(name=name, max_kl=max_kl), pilot, TASK, head=head, rows=rows)


@pytest.mark.parametrize("max_kl", [1e-7, 1e-4, 1e-3, 1e-1])
def test_auto_takes_the_smallest_that_keeps_the_budget(pilot, max_kl):
    chosen = choose(pilot, max_kl=max_kl)
    assert chosen.fidelity.within(max_kl)
    for name in ("fp16", "affine8", "affine6", "affine4", "topk-5", "topk-20"):
        other = measure(find_codec(name, CLASSES), pilot, TASK)
        assert not other.fidelity.within(max_kl) or other.bytes_per_row >= chosen.bytes_per_row


def test_a_sharp_teacher_may_keep_few_classes():
    logits = torch.full((512, 600), -60.0)
    logits[:, :3] = torch.randn(512, 3, generator=torch.Generator().manual_seed(1))
    chosen = choose(Pilot(TeacherOutput(logits), 1.0))
    assert chosen.codec.name == "topk-5"


def test_topk_is_refused_with_its_tail_mass(pilot, capsys):
    choose(pilot)
    refused = [line for line in capsys.readouterr().err.splitlines() if "topk-5" in line]
    assert "refused" in refused[0]
    assert "% of the probability omitted at T = 1" in refused[0]
    with pytest.raises(ConfigError, match=r"topk-5.*omitted .*% at T = 4; expected at most 0\.001"):
        choose(pilot, "topk-5", 1e-3)


def test_a_codec_by_name_has_no_limit_unless_one_is_set(pilot):
    assert CodecSpec(name="affine4").budget is None
    with pytest.raises(ConfigError, match=r"affine4 .*exceeds its error budget.*raise max_kl"):
        choose(pilot, "affine4", 1e-6)


def test_a_budget_that_nothing_keeps(pilot):
    with pytest.raises(ConfigError, match="exceeds its error budget"):
        choose(pilot, max_kl=1e-12)


def test_a_state_counts_where_there_are_few_rows():
    """A large head is not worth it for a thousand rows, and is for a million."""
    generator = torch.Generator().manual_seed(2)
    head = nn.Linear(16, 400)
    features = torch.randn(512, 16, generator=generator)
    with torch.no_grad():
        output = Pilot(TeacherOutput(head(features), features), 1.0)
    assert choose(output, head=head, rows=10**6).codec.name == "features"
    assert choose(output, head=head, rows=100).codec.name != "features"


def test_features_keep_the_budget_also_on_rows_that_they_were_not_fitted_to():
    """Every other row of this pilot is fitted to; those between are harder."""
    generator = torch.Generator().manual_seed(3)
    head, features = nn.Linear(64, 10), torch.randn(2048, 64, generator=generator)
    features[::2] *= 2
    with torch.no_grad():
        head.weight.copy_(0.3 * torch.randn(10, 64, generator=generator))
        output = Pilot(TeacherOutput(head(features), features), 1.0)
    once = measure(fit_features(output.output, head, 1e-3, TASK), output, TASK)
    assert not once.fidelity.within(1e-3)
    assert choose(output, "features", head=head).fidelity.within(1e-3)


def test_features_need_a_linear_last_layer(pilot):
    with pytest.raises(ModelError, match="needs a teacher whose last layer is linear"):
        choose(pilot, "features")


@pytest.mark.parametrize(
    ("samples", "views", "rows"),
    [
        (100, 1, (100, 1)),
        (100, 9, (100, 3)),
        (9000, 1, (256, 1)),
        (9000, 4, (562, 1)),
        (10**6, 300, (2048, 1)),
    ],
)
def test_the_pilot_is_a_small_share(samples, views, rows):
    assert pilot_rows(samples, views) == rows


def test_the_pilot_of_a_sample_is_as_large_as_that_of_the_whole():
    assert pilot_rows(400, 50) == (312, 1)
    assert pilot_rows(400, 50, 1_281_167) == (400, 6)
    assert pilot_rows(400, 2, 1_281_167) == (400, 2)


def test_the_pilot_says_the_same_each_time(context, teacher, make_spec):
    first, second = (run_pilot(context, teacher, make_spec()) for _ in range(2))
    assert torch.equal(first.output.logits, second.output.logits)
    assert torch.equal(first.output.features, second.output.features)
    assert first.images_per_second > 0


@pytest.mark.parametrize("codec", ["auto", "features"])
def test_the_choice_is_kept_over_resumes_and_ranks(
    context, teacher, make_spec, tmp_path, codec, monkeypatch
):
    spec = make_spec(codec, 1e-3)
    whole = tmp_path / "whole.zarr"
    cache_logits(context, teacher, spec, whole)
    sliced = tmp_path / "sliced.zarr"
    cache_logits(context, teacher, spec, sliced, part=Slice(0, 2), completes=False)
    monkeypatch.setattr("pipeline.dump.plan.run_pilot", None)  # chosen once
    cache_logits(context, teacher, spec, sliced, part=Slice(1, 2), completes=False)
    cache_logits(context, teacher, spec, sliced)
    assert content(sliced) == content(whole)
    store = LogitStore.open(sliced)
    assert store.manifest.fidelity().samples == 3 * store.n_samples
    assert store.manifest.header.codec_spec == spec.codec


def test_a_store_made_by_auto_can_be_named_and_its_budget_cannot_change(
    context, teacher, make_spec, tmp_path
):
    path = tmp_path / "main.zarr"
    cache_logits(context, teacher, make_spec("auto", 1e-3), path)
    chosen = LogitStore.open(path).codec.name
    cache_logits(context, teacher, make_spec(chosen), path)
    for other in (make_spec("auto", 1e-4), make_spec("fp16")):
        with pytest.raises(MismatchError, match="a different codec"):
            cache_logits(context, teacher, other, path)
