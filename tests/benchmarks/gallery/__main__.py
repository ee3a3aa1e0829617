"""Rewrite the marked tables and figures of all documents, and name the documents that changed."""

from __future__ import annotations

from tests.benchmarks.gallery.contents import FIGURES, TABLES
from tests.benchmarks.gallery.marks import rewritten
from tests.documents import READMES


def main() -> None:
    """Rewrite the documents."""
    for name, path in READMES.items():
        before = path.read_text()
        after = rewritten(before, TABLES, FIGURES)
        if after != before:
            path.write_text(after)
            print(name)


if __name__ == "__main__":
    main()
