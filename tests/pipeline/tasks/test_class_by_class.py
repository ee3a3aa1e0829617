"""Class by class, by hand."""

from __future__ import annotations

import torch

from pipeline.tasks.class_figures import ClassFigures, Confusion, class_figures, most_confused

NAMES = ("cat", "dog", "bird", "fish")
# label -> what is said: three cats (one a dog), two dogs (both cats), two birds, no fish; one unlabelled.
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1])
SAID = torch.tensor([0, 0, 1, 0, 0, 2, 2, 3])
LOGITS = torch.nn.functional.one_hot(SAID, 4).float()


def test_classes_by_hand():
    assert class_figures(LOGITS, LABELS, NAMES) == (
        ClassFigures(name="cat", support=3, recall=2 / 3, precision=2 / 4),
        ClassFigures(name="dog", support=2, recall=0.0, precision=0.0),
        ClassFigures(name="bird", support=2, recall=1.0, precision=1.0),
        ClassFigures(name="fish", support=0, recall=None, precision=None),
    )


def test_confusions_by_hand():
    assert most_confused(LOGITS, LABELS, NAMES) == (
        Confusion(label="dog", predicted="cat", count=2, share=1.0),
        Confusion(label="cat", predicted="dog", count=1, share=1 / 3),
    )
    assert len(most_confused(LOGITS, LABELS, NAMES, 1)) == 1


def test_equally_frequent_confusions_come_in_the_order_of_the_classes():
    labels = torch.tensor([3, 2, 1, 0])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 3, 2, 1]), 4).float()
    found = [(c.label, c.predicted) for c in most_confused(logits, labels, NAMES)]
    assert found == [("cat", "dog"), ("dog", "bird"), ("bird", "fish"), ("fish", "cat")]


def test_a_model_without_errors_confuses_nothing():
    assert most_confused(LOGITS, SAID, NAMES) == ()
