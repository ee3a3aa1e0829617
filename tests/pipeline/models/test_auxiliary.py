"""Auxiliary heads: in the loss of a training, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model_weights
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from pipeline.core.errors import ModelError
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.architecture import Architecture, build
from pipeline.models.auxiliary import count_parameters, weighted_logits
from pipeline.models.checkpoint import ModelCard, load_checkpoint, read_tensors, save_checkpoint

GOOGLENET = Architecture(name="googlenet", num_classes=3, options={"init_weights": False})
A, B, C = (torch.full((2, 3), float(value)) for value in range(3))


@pytest.fixture(scope="module")
def googlenet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(GOOGLENET)


def test_plain_logits_have_the_whole_weight():
    assert weighted_logits(A) == [(1.0, A)]


def test_inceptions_auxiliary_logits_count_four_tenths():
    assert weighted_logits(InceptionOutputs(A, B)) == [(1.0, A), (0.4, B)]


def test_googlenets_auxiliary_logits_count_three_tenths_each():
    assert weighted_logits(GoogLeNetOutputs(A, B, C)) == [(1.0, A), (0.3, C), (0.3, B)]


@pytest.mark.parametrize("outputs", [(A, B), {"logits": A}, None])
def test_other_outputs_are_refused(outputs):
    with pytest.raises(
        ModelError, match=rf"returns a {type(outputs).__name__} in training; expected a tensor of logits"
    ):
        weighted_logits(outputs)


def test_a_network_has_auxiliary_logits_in_training_alone(googlenet):
    images = torch.randn(2, 3, 32, 32)
    assert [weight for weight, _ in weighted_logits(googlenet.train()(images))] == [1.0, 0.3, 0.3]
    ((weight, logits),) = weighted_logits(googlenet.eval()(images))
    assert (weight, logits.shape) == (1.0, (2, 3))


def test_checkpoints_leave_auxiliary_heads_out(googlenet, tmp_path):
    preprocessing = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    card = ModelCard(architecture=GOOGLENET, preprocessing=preprocessing, classes=("a", "b", "c"))
    save_checkpoint(tmp_path / "x.pt", googlenet.state_dict(), card)
    assert not [name for name in read_tensors(tmp_path / "x.pt") if name.startswith("aux")]
    loaded, loaded_card = load_checkpoint(tmp_path / "x.pt")
    assert loaded_card.architecture.options["aux_logits"] is False
    assert loaded.train()(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_parameters_are_counted_without_auxiliary_heads(googlenet):
    """As torchvision counts those of GoogLeNet: without them, here of 3 classes instead of 1,000."""
    told = get_model_weights("googlenet")["IMAGENET1K_V1"].meta["num_params"]
    count = count_parameters(googlenet, GOOGLENET)
    assert count == told - (1000 - 3) * (1024 + 1)
    assert sum(p.numel() for p in googlenet.parameters()) > 1.7 * count
