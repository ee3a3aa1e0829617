"""The loss of codewords, and the targets that it reads."""

from __future__ import annotations

import pytest
import torch

from pipeline.codecs import find_codec
from pipeline.codecs.base import TeacherOutput
from pipeline.codecs.codebooks import fit_vectors
from pipeline.core.errors import ConfigError
from pipeline.loading.targets import require_codebooks
from pipeline.losses import LOSSES, codes, make_loss
from pipeline.losses.table import require_kept
from pipeline.tasks.embedding import EMBEDDING

CODEBOOKS, CODEWORDS = 3, 5
GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(4, CODEBOOKS * CODEWORDS, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randint(CODEWORDS, (4, CODEBOOKS), generator=GENERATOR)


def test_it_is_the_mean_cross_entropy_of_all_codebooks():
    each = [
        -STUDENT[row, CODEWORDS * book : CODEWORDS * (book + 1)].log_softmax(0)[TEACHER[row, book]]
        for row in range(4)
        for book in range(CODEBOOKS)
    ]
    found = codes(STUDENT, torch.zeros(4), TEACHER, kd_weight=2.0)
    torch.testing.assert_close(found, 2 * torch.stack(each).mean())


def test_a_student_that_names_the_codewords_has_nothing_to_learn():
    sure = 50.0 * torch.nn.functional.one_hot(TEACHER, CODEWORDS).flatten(1)
    assert float(make_loss("codes", {})(sure, torch.zeros(4), TEACHER)) < 1e-9
    assert torch.autograd.gradcheck(
        lambda student: codes(student, torch.zeros(4), TEACHER), (STUDENT.clone().requires_grad_(),)
    )


@pytest.mark.parametrize("stem", ["pq", "rvq"])
def test_codecs_of_codebooks_say_how_many(stem):
    output = TeacherOutput(torch.randn(600, 8, generator=GENERATOR), None)
    codec = fit_vectors(output, stem, 2, EMBEDDING)
    books, words = require_codebooks(codec)
    stored = codec.encode(output, EMBEDDING)["codes"]
    assert (books, tuple(stored.shape)) == (2, (600, 2))
    assert 0 < int(stored.max()) < words <= 256
    with pytest.raises(ConfigError, match="the store has none; re-dump with codec pq-M or rvq-M"):
        require_codebooks(find_codec("fp16", 8, absolute=True))


@pytest.mark.parametrize(
    ("codecs", "found"), [(["digits"], "has codec digits"), (["pq-4", "pq-4"], "averages 2 dumps")]
)
def test_a_dump_without_codewords_is_refused(codecs, found):
    with pytest.raises(ConfigError, match=f"learns codewords, but dump main {found}; expected one dump"):
        require_kept("codes", codecs, "dump main")


def test_a_dump_with_codewords_serves_other_losses_too():
    for name in ("codes", "cosine", "l2"):
        assert "identity" in LOSSES[name].links
        require_kept(name, ["rvq-16"], "dump main")
