"""Small logs of interactions for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

USERS, ITEMS, EACH = 60, 24, 12


def rows(users: int = USERS, items: int = ITEMS, each: int = EACH) -> list[tuple[str, str, int]]:
    """Return interactions of users who walk through the items in one of two directions, with few jumps."""
    rng = np.random.default_rng(0)
    found = []
    for user in range(users):
        item, step = int(rng.integers(items)), 1 if user % 2 else -1
        for time in range(each):
            found.append((f"u{user}", f"i{item}", 1000 * user + 10 * time))
            item = (item + step * int(rng.choice([1, 1, 1, 2]))) % items
    return found


def write_inter(path: Path, log: list[tuple[str, str, int]]) -> Path:
    """Write an atomic file of RecBole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{user}\t{item}\t{3.5}\t{float(time)}\n" for user, item, time in log]
    path.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(lines))
    return path


def write_csv(path: Path, log: list[tuple[str, str, int]], header: str = "user,item,timestamp") -> Path:
    """Write a table of users, items and times."""
    path.write_text(f"{header}\n" + "".join(f"{u},{i},{t}\n" for u, i, t in log))
    return path
