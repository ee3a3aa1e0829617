"""What holds for every task of the table, a new one's too."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.codecs.fidelity import Fidelity
from pipeline.samples.label_forms import gather_labels
from pipeline.samples.samples import Sample
from pipeline.tasks.table import TASKS
from pipeline.tasks.task import Task
from tests.pipeline.waiting import NoWaiting

EVERY = pytest.mark.parametrize("task", list(TASKS), ids=lambda task: task.name)
OUTPUTS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
LABEL = {
    "index": 1,
    "tags": torch.tensor([1, 0, 0, 1], dtype=torch.int8).numpy(),
    "numbers": torch.tensor([1.0, 2.0, 0.5, 0.0]).numpy(),
}


def _labels(task: Task) -> torch.Tensor:
    kind = task.labels[0]
    samples = [Sample(str(n), LABEL[kind], lambda: None) for n in range(30)]
    return torch.from_numpy(gather_labels(samples, kind, 4))


@EVERY
def test_names_of_figures_are_those_of_its_columns(task):
    labels = _labels(task)
    figures = task.compare(OUTPUTS, labels, OUTPUTS)
    assert list(figures.to_dict()) == [column.name for column in task.columns] or task.name == "embedding"
    assert set(figures.to_dict()) == {column.name for column in task.columns}
    assert set(task.calibrate((OUTPUTS, labels), (OUTPUTS, labels))) == {c.name for c in task.mended}
    assert set(task.against_teacher) < set(figures.to_dict())
    assert next(iter(figures.followed)) == task.columns[0].name
    cost = Fidelity.measure(task, OUTPUTS, OUTPUTS + 0.01)
    assert [column.name for column in task.costs] == list(cost.summary())
    assert task.describe(cost)


@EVERY
def test_an_output_has_no_distance_from_itself(task):
    task = task.fitted(OUTPUTS)
    assert float(task.diverge(OUTPUTS, OUTPUTS).max()) < 1e-12
    assert task.diverge(OUTPUTS, OUTPUTS).shape == (30, len(task.measures.divergences))
    assert task.agree(OUTPUTS, OUTPUTS).all()
    assert task.restored(task.measures).measures == task.measures


@EVERY
def test_a_store_tells_the_measures_of_all_but_a_softmax(task):
    told = type(task.measures).from_dict(task.fitted(OUTPUTS).measures.to_dict())
    assert told == task.fitted(OUTPUTS).measures
    kept = task.kept(OUTPUTS)
    assert task.measures.is_absolute == torch.equal(kept, OUTPUTS)


@EVERY
def test_no_rule_waits_for_its_device(task):
    """Fake tensors refuse to be read, and copies to their device have to be made before."""
    task = task.fitted(OUTPUTS)
    task.diverge(OUTPUTS, OUTPUTS)
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting():
        given, decoded = torch.empty_like(OUTPUTS), torch.empty_like(OUTPUTS)
        for found in (task.diverge(given, decoded), task.agree(given, decoded), task.answers(given)):
            assert len(found) == 30
        assert task.kept(given).shape == OUTPUTS.shape
