"""Make the built-in log of items from Debian's index of packages.

    wget https://deb.debian.org/debian/dists/bookworm/main/binary-amd64/Packages.xz && unxz Packages.xz
    python -m tests.benchmarks.built_in_dependencies Packages

A user is a source package, its items are the packages of other sources that its binary packages depend on.
Of alternatives (a | b) the first counts. Virtual packages are left out: only names of packages of the index
are items. Users and items with fewer than `FEWEST` of the other are left out in turn.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.modalities.items.sources.builtin import FILE

FEWEST = 5
OUT = Path(__file__).parents[2] / "pipeline/modalities/items/builtin" / FILE
_FIELD = re.compile(r"^(Package|Source|Pre-Depends|Depends): (.*)$", re.M)
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def packages(index: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, source and dependencies of each binary package of an index."""
    for stanza in index.split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        if "Package" in fields:
            name = fields["Package"]
            given = [fields[key] for key in ("Pre-Depends", "Depends") if key in fields]
            wanted = [_NAME.match(part.strip()) for part in ", ".join(given).split(",")]
            source = fields.get("Source", name).split(" ")[0]
            yield name, source, [found[0] for found in wanted if found]


def dependencies(index: str) -> dict[str, set[str]]:
    """Return the packages of other sources that each source depends on, few ones left out."""
    found = list(packages(index))
    source_of = {name: source for name, source, _ in found}
    wanted: dict[str, set[str]] = {}
    for _, source, names in found:
        others = {name for name in names if name in source_of and source_of[name] != source}
        wanted.setdefault(source, set()).update(others)
    return _dense(wanted)


def _dense(wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
    before: dict[str, set[str]] = {}
    now = dict(wanted)
    while now != before:
        before = now
        counts = Counter(name for names in before.values() for name in names)
        kept = {user: {n for n in names if counts[n] >= FEWEST} for user, names in before.items()}
        now = {user: names for user, names in kept.items() if len(names) >= FEWEST}
    return now


def main(path: Path) -> None:
    """Write the packed log."""
    content = path.read_bytes()
    found = dependencies(content.decode())
    lines = [f"{user} {' '.join(sorted(names))}\n" for user, names in sorted(found.items())]
    packed = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    OUT.write_bytes(packed)
    items = {name for names in found.values() for name in names}
    total = sum(map(len, found.values()))
    print(f"index SHA-256 {hashlib.sha256(content).hexdigest()}")
    print(
        f"{len(found):,} users, {len(items):,} items, {total:,} interactions, packed {len(packed):,} bytes"
    )
    print(f"{FILE} SHA-256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
