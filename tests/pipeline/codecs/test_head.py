"""Another last layer over features: merged classes, directions, and decoders of both kinds of stores."""

from __future__ import annotations

import pickle

import pytest
import torch

from pipeline.codecs import TeacherOutput, find_codec
from pipeline.codecs.fitting import fit_digits
from pipeline.codecs.head import DROPPED, Head, merged
from pipeline.core.errors import ConfigError
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.embedding import EMBEDDING


def head(**changes) -> Head:
    torch.manual_seed(0)
    weight = torch.randn(5, 8)
    classes = tuple("abcde")
    return Head(**{"weight": weight, "bias": torch.randn(5), "classes": classes, **changes})


def test_merged_probabilities_add_up_and_the_rest_is_left_out():
    groups = torch.tensor([1, 0, DROPPED, 1, 0])
    features = torch.randn(7, 8)
    each = torch.nn.functional.linear(features, head().weight, head().bias).double().exp()
    expected = torch.stack([each[:, [1, 4]].sum(1), each[:, [0, 3]].sum(1)], 1)
    found = head(groups=groups, classes=("x", "y")).outputs(features)
    assert (found.amax(1) == 0).all()
    torch.testing.assert_close(found.double().softmax(1), expected / expected.sum(1, keepdim=True))


def test_a_group_of_tiny_probabilities_keeps_its_logit():
    outputs = torch.tensor([[0.0, -200.0, -200.0, -500.0]])
    found = merged(outputs, torch.tensor([0, 1, 1, 2]), 3)
    expected = [0.0, -200 + float(torch.tensor(2.0).log()), -500.0]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_groups_are_of_a_softmax_alone():
    with pytest.raises(ConfigError, match="outputs are of a sigmoid"):
        head(groups=torch.zeros(5, dtype=torch.int64), link="sigmoid")


def test_directions_ignore_the_length_of_features():
    features = torch.randn(6, 8)
    unit = head(unit=True, bias=torch.zeros(5))
    torch.testing.assert_close(unit.outputs(features), unit.outputs(3 * features))


def test_absolute_outputs_are_not_shifted():
    features = torch.randn(6, 8)
    found = head(link="sigmoid").outputs(features)
    torch.testing.assert_close(found, torch.nn.functional.linear(features, head().weight, head().bias))


def test_everything_that_changes_outputs_or_names_changes_the_digest():
    others = [
        head(bias=torch.zeros(5)),
        head(unit=True),
        head(of_outputs=True),
        head(classes=tuple("abcdf")),
        head(groups=torch.arange(5)),
        head(link="identity"),
    ]
    assert len({one.digest() for one in (head(), *others)}) == 1 + len(others)
    assert pickle.loads(pickle.dumps(head())).digest() == head().digest()


@pytest.mark.parametrize("codec", ["fp16", "affine8", "digits"])
def test_embeddings_of_any_codec_are_features(codec):
    vectors = torch.randn(200, 8)
    output = TeacherOutput(vectors)
    made = fit_digits(output, 1e-4, EMBEDDING) if codec == "digits" else find_codec(codec, 8, absolute=True)
    arrays = made.encode(output, EMBEDDING)
    decoder = head(of_outputs=True).decoder([made])
    torch.testing.assert_close(decoder.decode(arrays), head().outputs(made.decode(arrays)))
    assert float(CLASSES.diverge(head().outputs(vectors), decoder.decode(arrays)).mean()) < 1e-2


def test_a_codec_of_logits_alone_has_no_features():
    with pytest.raises(ConfigError, match="affine8 keeps outputs alone"):
        head().decoder([find_codec("affine8", 8)])
