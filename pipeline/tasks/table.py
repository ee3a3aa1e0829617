"""The tasks by name. A new one is a file and a line here, or `module:NAME` in the user's package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.open_table import OpenTable
from pipeline.core.own_code import Kind
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.embedding import EMBEDDING
from pipeline.tasks.multilabel import MULTILABEL
from pipeline.tasks.next_item import NEXT_ITEM
from pipeline.tasks.scores import SCORES
from pipeline.tasks.task import Task

TASKS: OpenTable[Task] = OpenTable(
    Kind(noun="task", returns="a task", plural="tasks"),
    {
        CLASSES.name: lambda: CLASSES,
        MULTILABEL.name: lambda: MULTILABEL,
        EMBEDDING.name: lambda: EMBEDDING,
        SCORES.name: lambda: SCORES,
        NEXT_ITEM.name: lambda: NEXT_ITEM,
    },
    Task,
    key="data.task",
    address="pipeline.tasks.table.TASKS",
)


def find_task(name: str = CLASSES.name) -> Task:
    """Return a task by its name; see `OpenTable.find`."""
    return TASKS.find(name)


def task_of(plain: Mapping[str, Any]) -> Task:
    """Return the task of a model, from the plain values of its card or of a store's header.

    Raises:
        ConfigError: no task has this name, or the user neither named nor trusted the task's code.
    """
    return find_task(str(plain.get("task", CLASSES.name)))
