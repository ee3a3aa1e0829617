"""The tasks by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError, did_you_mean, quoted
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.task import Task

TASKS: Mapping[str, Task] = {CLASSES.name: CLASSES}


def task_of(plain: Mapping[str, Any]) -> Task:
    """Return the task of a model, from its card or a teacher's in a store's header, as plain values.

    Raises:
        ConfigError: there is none of its name.
    """
    return find_task(str(plain.get("task", CLASSES.name)))


def find_task(name: str = CLASSES.name) -> Task:
    """Return a task by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(
            f"task is {quoted(name)}; expected one of {', '.join(TASKS)}{did_you_mean(name, TASKS)}"
        )
    return TASKS[name]
