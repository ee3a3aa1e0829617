"""The processes of a command that works on Ray."""

from __future__ import annotations

import subprocess

import psutil


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all processes that a command has started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return those that make shards now."""
    found = []
    for each in family_of(process):
        try:
            if each.cmdline()[:1] == ["ray::_Worker.do"]:
                found.append(each)
        except psutil.Error:
            continue
    return found
