import numpy as np
import pytest
import torch

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.dense import codes_per_byte, pack, unpack
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.rule import SOFTMAX
from pipeline.core.errors import ConfigError
from pipeline.tasks.classes import CLASSES

CODECS = ("fp16", "affine8", "affine6", "affine4", "topk-2")


@pytest.fixture
def logits():
    return torch.randn(500, 37, generator=torch.Generator().manual_seed(0)) * 4


@pytest.mark.parametrize("name", CODECS)
def test_arrays_are_as_declared(name, logits):
    codec = find_codec(name, 37)
    encoded = codec.encode(TeacherOutput(logits), CLASSES)
    for array, spec in codec.arrays.items():
        values = encoded[array].numpy()
        assert values.dtype == np.dtype(spec.dtype)
        assert values.shape == (500, *spec.shape)
    assert encoded.keys() == codec.arrays.keys()


@pytest.mark.parametrize("name", CODECS)
def test_decoded_maximum_is_zero_and_where_it_was(name, logits):
    codec = find_codec(name, 37)
    decoded = codec.decode(codec.encode(TeacherOutput(logits), CLASSES))
    assert decoded.dtype == torch.float32
    assert (decoded.amax(1) == 0).all()
    assert (decoded.gather(1, logits.argmax(1, keepdim=True)) == 0).all()


@pytest.mark.parametrize("name", CODECS)
def test_rows_do_not_depend_on_their_batch(name, logits):
    codec = find_codec(name, 37)
    whole, part = (
        codec.encode(TeacherOutput(logits), CLASSES),
        codec.encode(TeacherOutput(logits[100:117]), CLASSES),
    )
    for array in whole:
        assert torch.equal(whole[array][100:117], part[array])


@pytest.mark.parametrize("name", CODECS)
def test_a_constant_a_row_changes_nothing(name):
    codec = find_codec(name, 9)
    # Multiples of 1/16, so that adding the constant is exact.
    logits = torch.randint(-64, 64, (50, 9), generator=torch.Generator().manual_seed(1)) / 16
    shifted = codec.encode(TeacherOutput(logits + 32), CLASSES)
    for array, values in codec.encode(TeacherOutput(logits), CLASSES).items():
        assert torch.equal(values, shifted[array])


@pytest.mark.parametrize(
    ("name", "limit"),
    [("fp16", 1e-5), ("affine8", 1e-3), ("affine6", 1e-2), ("affine4", 2e-1), ("topk-30", 1e-2)],
)
def test_divergence_is_small(name, limit, logits):
    codec = find_codec(name, 37)
    figures = Fidelity.measure(
        CLASSES, logits, codec.decode(codec.encode(TeacherOutput(logits), CLASSES))
    ).summary()
    assert 0 <= figures["kl_t1_mean"] < limit
    assert figures["kl_t1_mean"] <= figures["kl_t1_p99"] < 10 * limit


@pytest.mark.parametrize(("name", "levels"), [("affine8", 256), ("affine6", 64), ("affine4", 16)])
def test_affine_error_is_at_most_half_a_step(name, levels, logits):
    codec = find_codec(name, 37)
    relative = logits - logits.amax(1, keepdim=True)
    error = (codec.decode(codec.encode(TeacherOutput(logits), CLASSES)) - relative).abs().amax(1)
    step = -relative.amin(1) / (levels - 1)
    assert (error <= 0.65 * step).all()


@pytest.mark.parametrize("n_classes", [37, 300, 70_000])
def test_topk_keeps_the_likeliest_classes_and_the_mass_of_the_others(n_classes):
    logits = torch.randn(20, n_classes, generator=torch.Generator().manual_seed(3)) * 4
    codec = find_codec("topk-5", n_classes)
    decoded = codec.decode(codec.encode(TeacherOutput(logits), CLASSES))
    kept = logits.topk(5).indices
    assert torch.equal(decoded.topk(5).indices.sort(1).values, kept.sort(1).values)
    true, stored = (x.double().softmax(1) for x in (logits, decoded))
    assert stored.sum(1).numpy() == pytest.approx(np.ones(20))
    outside = [1 - p.gather(1, kept).sum(1) for p in (true, stored)]
    assert torch.allclose(outside[0], outside[1], rtol=0.05)


def test_topk_of_all_classes_is_refused():
    with pytest.raises(ConfigError, match=r"'topk-10'; expected 1 to 9 for 10 classes"):
        find_codec("topk-10", 10)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 16, 17, 256])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_packed_codes_come_back(levels, count):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, levels, (11, count), generator=generator, dtype=torch.uint8)
    packed = pack(codes, levels)
    per_byte = codes_per_byte(levels)
    assert levels**per_byte <= 256
    assert packed.shape == (11, -(-count // per_byte))
    assert torch.equal(unpack(packed, levels, count), codes)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [0.0, 1e-7, 1e4, -1e4, 6e4])
def test_extreme_rows_stay_finite(name, value):
    codec = find_codec(name, 3)
    logits = torch.tensor([[value, value, value], [value, 0.0, -value]])
    decoded = codec.decode(codec.encode(TeacherOutput(logits), CLASSES))
    assert decoded.isfinite().all()
    assert (decoded[0] == 0).all()


def test_unknown_codec_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'affine8'"):
        find_codec("afine8", 10)


def test_fidelity_of_parts_adds_up_to_the_whole(logits):
    noisy = logits + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    whole = Fidelity.measure(CLASSES, logits, noisy)
    parts = [Fidelity.measure(CLASSES, logits[i : i + 100], noisy[i : i + 100]) for i in range(0, 500, 100)]
    total = Fidelity.total(SOFTMAX, parts)
    for name, divergence in whole.divergences.items():
        assert total.divergences[name].histogram == divergence.histogram
    assert total.same == whole.same
    assert total.summary() == pytest.approx(whole.summary())
    assert Fidelity.from_dict(total.to_dict()) == total


def test_fidelity_equals_an_independent_computation(logits):
    noisy = logits + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    measured = Fidelity.measure(CLASSES, logits, noisy)
    figures = measured.summary()
    percentiles = {1: figures["kl_t1_p99"], 4: measured.divergences["kl_t4"].p99}
    for temperature, key in ((1, "kl_t1_mean"), (4, "kl_t4_mean")):
        p, q = (np.exp(x.numpy().astype(np.float64) / temperature) for x in (logits, noisy))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        kl = (p * np.log(p / q)).sum(1)
        assert figures[key] == pytest.approx(kl.mean(), rel=1e-9)
        exact = np.quantile(kl, 0.99, method="inverted_cdf")
        assert exact <= percentiles[temperature] <= 1.045 * exact


@pytest.mark.cuda
@pytest.mark.parametrize("name", CODECS)
def test_a_gpu_gives_the_same_bytes(name, logits):
    codec = find_codec(name, 37)
    here, there = (codec.encode(TeacherOutput(logits.to(device)), CLASSES) for device in ("cpu", "cuda"))
    for array, values in here.items():
        assert torch.equal(there[array].cpu(), values)
