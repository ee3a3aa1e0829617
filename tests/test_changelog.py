"""The changelog names the current value of every version number that decides whether a file is readable."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pipeline.codecs import CODECS, find_codec, state_shapes
from pipeline.modalities.images.spec import SEMANTICS
from pipeline.samples import description, prepare
from pipeline.store import layout
from pipeline.training import loop

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pipeline/CHANGELOG.md").read_text()
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)


def codec_version(name: str) -> int:
    # A fitted codec cannot be made without a teacher's outputs.
    file = "vectors" if name.endswith("-M") else name if state_shapes(name) else None
    if file is not None:
        (version,) = re.findall(r"\bversion=(\d+)", (ROOT / f"pipeline/codecs/{file}.py").read_text())
        return int(version)
    return find_codec(name.replace("-K", "-5"), 10).version


def test_the_newest_release_is_the_version_of_the_package():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    releases = RELEASE.findall(TEXT)
    assert releases[0][0] == told
    assert releases == sorted(releases, key=lambda release: [int(n) for n in release[0].split(".")])[::-1]
    assert len(releases) == TEXT.count("\n## ")


def test_the_newest_release_names_every_number_that_this_version_writes():
    numbers = {
        "store schema": layout.SCHEMA,
        "dataset schema": description.SCHEMA,
        "rendering semantics": SEMANTICS,
        **{f"codec `{name}`": codec_version(name) for name in CODECS},
        "training state": loop._STATE_VERSION,
        "reading": prepare._READING,
    }
    newest = RELEASE.split(TEXT)[3]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| (\d+) \| ([\d, ]+) \|$", newest, re.MULTILINE)
    assert {name: int(writes) for name, writes, _ in rows} == numbers
    reads = {name: [int(number) for number in told.split(",")] for name, _, told in rows}
    assert {name: max(some) for name, some in reads.items()} == numbers
    assert reads["store schema"] == list(layout.SCHEMAS)
