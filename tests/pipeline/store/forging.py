"""Stores that somebody made up: any value changed, every digest made to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.core.hashing import bytes_digest, canonical_json
from pipeline.store.catalogue import Catalogue

Place = tuple[str | int, ...]
HEADER = (
    *("schema", "layout", "fingerprint", "teacher", "views"),
    *("codec_spec", "batch_size", "versions", "labels"),
)


def seal(manifest: dict[str, Any]) -> str:
    """Return a manifest's text with a digest that fits, were its values none that a digest is made of."""
    content = {key: value for key, value in manifest.items() if key not in ("digest", "written_by")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**manifest, "digest": digest})


def forge(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a complete store's manifest, and its root alike; their digests fit."""
    manifest = json.loads((store / "manifest.json").read_text())
    change(manifest)
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"] = {key: manifest[key] for key in HEADER if key in manifest}
    (store / "zarr.json").write_text(json.dumps(root))
    if isinstance(manifest.get("metadata"), dict):
        manifest["metadata"] = {
            **manifest["metadata"],
            "zarr.json": bytes_digest((store / "zarr.json").read_bytes()),
        }
    (store / "manifest.json").write_text(seal(manifest))


def forge_file(store: Path, name: str, content: bytes) -> None:
    """Replace a file of a complete store, and what the manifest says of it."""
    (store / name).write_bytes(content)
    manifest = json.loads((store / "manifest.json").read_text())
    if name in manifest["metadata"]:
        manifest["metadata"][name] = bytes_digest(content)
    for first, digest in manifest["catalogues"].items():
        catalogue = Catalogue.parse((store / "catalogues" / digest).read_bytes())
        sizes, digests = catalogue.columns["sizes"].copy(), catalogue.columns["digests"].copy()
        for place, shard in enumerate(catalogue.span.shards()):
            for column, array in enumerate(catalogue.head.arrays):
                if name.startswith(f"{shard.section}/{array}/c/{shard.view}/{shard.block}"):
                    manifest["totals"][shard.section]["bytes"] += len(content) - int(sizes[place, column])
                    sizes[place, column] = len(content)
                    digests[place, column] = list(bytes.fromhex(bytes_digest(content)))
        columns = {**catalogue.columns, "sizes": sizes, "digests": digests}
        changed = Catalogue(catalogue.span, catalogue.head, columns).to_bytes()
        manifest["catalogues"][first] = forge_catalogue(store, changed)
    (store / "manifest.json").write_text(seal(manifest))


def forge_catalogue(store: Path, content: bytes) -> str:
    """Write a catalogue and its copy under the digest of their content, and return it."""
    digest = bytes_digest(content)
    for name in (digest, f"{digest}.copy"):
        (store / "catalogues" / name).write_bytes(content)
    return digest


def seal_record(record: dict[str, Any]) -> bytes:
    """Return a line of records whose digest fits."""
    content = {key: value for key, value in record.items() if key != "digest"}
    return canonical_json({**content, "digest": bytes_digest(canonical_json(content).encode())}).encode()


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where each value of nested ones is; of alike shards only the first."""
    yield place
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in [*items][:1] if place == ("catalogues",) else items:
        yield from places(inner, (*place, key))


def put(value: Any, place: Place, new: Any) -> None:
    """Replace the value at a place; a place that is gone stays so."""
    *parents, last = place
    for key in parents:
        value = value[key]
    value[last] = new


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value
