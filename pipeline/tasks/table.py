"""The tasks by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.errors import ConfigError, did_you_mean, quoted
from pipeline.tasks.classes import CLASSES
from pipeline.tasks.task import Task

TASKS: Mapping[str, Task] = {CLASSES.name: CLASSES}


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
