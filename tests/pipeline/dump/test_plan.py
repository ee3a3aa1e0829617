"""The plan of a dump: values that write nothing, and that a run follows, also when it comes late."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dump.plan import plan_dump
from pipeline.dump.run import cache_logits, run_dump


def content(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_planning_writes_nothing(context, teacher, make_spec, tmp_path):
    plan = plan_dump(context, teacher, make_spec("features"), tmp_path / "main.zarr")
    assert plan.is_new
    assert not list(tmp_path.iterdir())
    assert plan.forwards == sum(map(plan.header.layout.n_rows, plan.missing)) > 0


@pytest.mark.parametrize("codec", ["affine8", "features"])
def test_a_planned_dump_has_the_bytes_of_one_at_once(context, teacher, make_spec, tmp_path, codec):
    spec = make_spec(codec)
    run_dump(plan_dump(context, teacher, spec, tmp_path / "planned.zarr"))
    cache_logits(context, teacher, spec, tmp_path / "main.zarr")
    assert content(tmp_path / "planned.zarr") == content(tmp_path / "main.zarr")


def test_a_plan_that_comes_late_goes_on_from_what_is_there(context, teacher, make_spec, tmp_path):
    """Another process made the store, and more views of it, after this one had planned."""
    path = tmp_path / "main.zarr"
    late = plan_dump(context, teacher, make_spec(view_count=2), path)
    cache_logits(context, teacher, make_spec(view_count=1), path)
    manifest = run_dump(late)
    assert manifest is not None
    assert manifest.layout.sections["train"].n_views == 2
    cache_logits(context, teacher, make_spec(view_count=2), tmp_path / "other.zarr")
    shards = {name: bytes_ for name, bytes_ in content(path).items() if "/c/" in name}
    assert shards == {n: b for n, b in content(tmp_path / "other.zarr").items() if "/c/" in n}


def test_a_finished_store_has_nothing_left_to_do(context, teacher, make_spec, tmp_path):
    spec, path = make_spec(), tmp_path / "main.zarr"
    cache_logits(context, teacher, spec, path)
    plan = plan_dump(context, teacher, spec, path)
    assert (plan.is_new, plan.missing, plan.forwards) == (False, [], 0)
