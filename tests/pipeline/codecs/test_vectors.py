"""Codecs of whole vectors: codebooks, codes and what is refused of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codecs import TeacherOutput, codec_fingerprint, find_codec
from pipeline.codecs.codebooks import deal, fit_vectors, kmeans
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.spec import CodecSpec
from pipeline.codecs.vectors import nearest
from pipeline.core.errors import ConfigError
from pipeline.dump.choose_codec import Pilot, choose_codec, pilot_rows
from pipeline.tasks.embedding import EMBEDDING
from pipeline.tasks.scores import SCORES

KINDS = pytest.mark.parametrize("stem", ["pq", "rvq"])


def draws(seed: int, count: int = 600) -> torch.Tensor:
    """Vectors (count, 24) with 40 directions and some noise, of unlike spread."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, 24, generator=torch.Generator().manual_seed(9))
    spread = torch.linspace(0.2, 2, 24)
    noise = 0.3 * torch.randn(count, 24, generator=generator)
    return (centres[torch.randint(40, (count,), generator=generator)] + noise) * spread


OUTPUTS = draws(0)


def made(stem: str, number: int = 4):
    return fit_vectors(TeacherOutput(OUTPUTS), stem, number, EMBEDDING)


@KINDS
def test_a_vector_takes_its_bytes_and_codes_come_back_exactly(stem):
    codec = made(stem)
    encoded = codec.encode(TeacherOutput(OUTPUTS), EMBEDDING)
    assert {name: (values.shape, values.dtype) for name, values in encoded.items()} == {
        "codes": ((600, 4), torch.uint8)
    }
    assert codec.bytes == 4
    # A codeword's own vector has the same code; for the sums of rvq, a greedy search need not find it.
    if stem == "pq":
        decoded = codec.decode(encoded)
        assert torch.equal(codec.encode(TeacherOutput(decoded), EMBEDDING)["codes"], encoded["codes"])
    again = find_codec(f"{stem}-4", 24, codec.state, absolute=True)
    assert torch.equal(again.decode(encoded), codec.decode(encoded))
    assert codec_fingerprint(again) == codec_fingerprint(codec)
    assert torch.equal(codec.features.decode(encoded), codec.decode(encoded))


def test_decoding_is_what_the_document_says():
    rows = np.arange(600)
    product, residual = made("pq"), made("rvq")
    codes = product.encode(TeacherOutput(OUTPUTS), EMBEDDING)
    table, part = product.state["table"].numpy(), product.state["part"].numpy()
    expected = table[np.arange(24), codes["codes"].numpy()[:, part]]
    assert np.array_equal(product.decode(codes).numpy(), expected)
    codes = residual.encode(TeacherOutput(OUTPUTS), EMBEDDING)
    books = residual.state["table"].numpy().reshape(4, -1, 24)
    total = sum(books[m][codes["codes"].numpy()[rows, m]] for m in range(4))
    assert np.allclose(residual.decode(codes).numpy(), total, atol=1e-6)


@KINDS
def test_more_bytes_err_less_on_rows_that_were_not_fitted(stem):
    unseen, errors = TeacherOutput(draws(1)), []
    for number in (1, 2, 4, 8):
        codec = made(stem, number)
        decoded = codec.decode(codec.encode(unseen, EMBEDDING))
        errors.append(Fidelity.measure(EMBEDDING, unseen.logits, decoded).worst)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4 * errors[0]


@KINDS
def test_codes_do_not_depend_on_the_batch(stem):
    codec = made(stem)
    whole = codec.encode(TeacherOutput(OUTPUTS), EMBEDDING)["codes"]
    some = codec.encode(TeacherOutput(OUTPUTS[100:117]), EMBEDDING)["codes"]
    assert torch.equal(whole[100:117], some)


@KINDS
def test_fitting_again_gives_the_same_state(stem):
    assert codec_fingerprint(made(stem)) == codec_fingerprint(made(stem))


def test_of_equally_near_codewords_the_lowest_number_wins():
    book = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = nearest(
        book, torch.tensor([[1.0, 1.0], [0.0, 1.0], [3.0, 0.0]]).double(), torch.ones(2).double()
    )
    assert found.tolist() == [0, 1, 0]


def test_equal_rows_and_outputs_that_never_change_are_kept_exactly():
    constant = TeacherOutput(torch.full((50, 6), 3.25))
    for stem in ("pq", "rvq"):
        codec = fit_vectors(constant, stem, 2, EMBEDDING)
        assert torch.equal(codec.decode(codec.encode(constant, EMBEDDING)), constant.logits)


def test_no_codeword_is_wasted_on_rows_that_repeat():
    rows = torch.tensor([[0.0]] * 60 + [[10.0], [20.0], [30.0]])
    means = kmeans(rows, 4, torch.Generator().manual_seed(0))
    assert sorted(means[:, 0].tolist()) == [0, 10, 20, 30]


def test_parts_share_the_spread():
    spread = torch.arange(1.0, 13.0)
    parts = deal(spread, 3)
    assert [int(spread[parts == part].sum()) for part in range(3)] == [26, 26, 26]


def test_an_error_counts_in_the_unit_of_its_score():
    units = torch.tensor([1.0, 1000.0])
    outputs = units * torch.randn(600, 2, generator=torch.Generator().manual_seed(3))
    task = SCORES.fitted(outputs)
    codec = fit_vectors(TeacherOutput(outputs), "rvq", 2, task)
    decoded = codec.decode(codec.encode(TeacherOutput(outputs), task))
    errors = (decoded - outputs).square().mean(0).sqrt() / units
    assert float(errors.max() / errors.min()) < 2


@KINDS
def test_a_dump_is_refused_above_its_budget_and_told_what_unseen_rows_cost(stem, capsys):
    pilot, name = Pilot(TeacherOutput(OUTPUTS), 1.0), f"{stem}-4"
    chosen = choose_codec(CodecSpec(name=name, max_error=0.5), pilot, EMBEDDING, head=None, rows=600)
    assert chosen.codec.name == name
    assert chosen.fidelity.samples == 75
    with pytest.raises(ConfigError, match=rf"codec {name} \(max_error 0.001\): exceeds its error budget"):
        choose_codec(CodecSpec(name=name, max_error=1e-3), pilot, EMBEDDING, head=None, rows=600)
    assert choose_codec(CodecSpec(name=name), pilot, EMBEDDING, head=None, rows=600).codec.name == name


def test_codebooks_have_a_larger_pilot():
    assert CodecSpec(name="pq-16").needs_pilot
    assert pilot_rows(100_000, 4) == (2048, 1)
    assert pilot_rows(100_000, 4, for_codebooks=True) == (8192, 1)
    assert pilot_rows(100, 4, for_codebooks=True) == (100, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pq-65", "expected 1 to 64 bytes"),
        ("rvq-65", "expected 1 to 64 bytes"),
        ("pq-16x", "expected one of auto, fp16"),
        ("pq", "pq-M"),
    ],
)
def test_names_are_checked_when_params_yaml_is_read(name, message):
    with pytest.raises(ConfigError, match=message):
        CodecSpec(name=name)


def test_more_bytes_than_outputs_and_a_softmax_are_refused():
    with pytest.raises(ConfigError, match="codec is 'pq-30'; expected 1 to 24 bytes for 24 outputs"):
        made("pq", 30)
    with pytest.raises(ConfigError, match=r"keeps vectors as a whole; .* one softmax; expected fp16"):
        find_codec("rvq-16", 10, {})


@KINDS
@pytest.mark.parametrize(
    "forge",
    [
        lambda state: {k: v for k, v in state.items() if k != "metric"},
        lambda state: {**state, "metric": state["metric"][:-1]},
        lambda state: {**state, "table": state["table"].double()},
        lambda state: {**state, "table": state["table"] * float("nan")},
        lambda state: {**state, "table": state["table"][:-1]},
        lambda state: {**state, "table": torch.zeros(())},
    ],
)
def test_forged_codebooks_are_refused(stem, forge):
    with pytest.raises(ValueError, match=r"\w"):
        find_codec(f"{stem}-4", 24, forge(dict(made(stem).state)), absolute=True)


@pytest.mark.parametrize("part", [4, -1, 2])
def test_forged_parts_are_refused(part):
    state = dict(made("pq").state)
    forged = state["part"].clone()
    forged[forged == 3] = part
    with pytest.raises(ValueError, match="parts are out of range"):
        find_codec("pq-4", 24, {**state, "part": forged}, absolute=True)


@KINDS
def test_forged_codes_are_noticed_and_index_nothing_out_of_range(stem):
    codec = made(stem)
    forged = {"codes": torch.full((2, 4), 255, dtype=torch.uint8)}
    assert not codec.is_valid(forged)
    assert bool(codec.decode(forged).isfinite().all())
    assert codec.is_valid(codec.encode(TeacherOutput(OUTPUTS), EMBEDDING))


@KINDS
def test_a_vector_that_is_not_finite_is_within_no_budget(stem):
    codec, broken = made(stem), TeacherOutput(torch.full((1, 24), float("nan")))
    assert not bool(broken.are_finite().any())
    lost = EMBEDDING.diverge(broken.logits, codec.decode(codec.encode(broken, EMBEDDING)))
    assert bool(lost.isnan().all())
