"""Names of params.yaml: the rule for each, and two runs that would share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.errors import ConfigError
from stages.params import Params
from stages.params_file import load_params

MODEL = {"model": "resnet20"}
DUMP = {"teacher": "tutor", "views": {"count": 1}}
SPECS: dict[str, Any] = {
    "teachers": MODEL,
    "dumps": DUMP,
    "students": MODEL,
    "recipes": {"loss": "kd"},
    "ensembles": {"of": ["main", "other"]},
    "reheads": {"of": "main", "head": "head.npz"},
    "probes": {"of": "main"},
}


@pytest.fixture
def load(tmp_path: Path):
    """Load parameters with these names, by group, beside teacher `tutor` and dumps `main` and `other`."""

    def run(*overrides: str, **names: Any) -> Params:
        names = {"teachers": ["tutor"], "dumps": ["main", "other"], **names}
        tree = {
            group: each if isinstance(each, dict) else dict.fromkeys(each, SPECS[group])
            for group, each in names.items()
        }
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load_params(path, overrides)

    return run


def plain(*names: str) -> dict[str, Any]:
    """Recipes of baselines."""
    return {name: {"loss": "scratch"} for name in names}


@pytest.mark.parametrize("group", SPECS)
@pytest.mark.parametrize("name", ["a/b", "../up", "a b", "v1.0", "x;touch F", "-x", "x\n", "ü", "a" * 65])
def test_a_name_that_breaks_the_rule_is_refused_when_the_file_is_read(load, group, name):
    noun = {"reheads": "re-headed dump"}.get(group, group.removesuffix("s"))
    with pytest.raises(ConfigError, match=rf"params.yaml: {noun} name ") as caught:
        load(**{group: [name]})
    assert repr(name) in str(caught.value)


def test_a_name_of_an_override_is_held_to_the_rule(load):
    with pytest.raises(ConfigError, match="student name 'a b'"):
        load("students.a b.model=resnet20")


@pytest.mark.parametrize("kind", ["teacher", "dump", "student", "recipe"])
def test_a_name_of_the_command_line_is_held_to_the_rule(load, kind):
    with pytest.raises(ConfigError, match=rf"{kind} name '../../x'"):
        getattr(load(), kind)("../../x")


@pytest.mark.parametrize("name", [2024, False, None, 1.5])
def test_a_name_that_yaml_takes_for_something_else_is_refused(load, name):
    with pytest.raises(ConfigError, match=rf"students: YAML reads the name {name} .*put it in quotes"):
        load(students=[name])


@pytest.mark.parametrize("name", ["1e3", "0o17"])
def test_a_name_that_is_a_number_for_dvc_alone_is_refused(load, name):
    with pytest.raises(ConfigError, match=f"students: '{name}' is text here but a number for DVC"):
        load(students=[name])


@pytest.mark.parametrize("groups", [("dumps",), ("dumps", "ensembles"), ("students",)])
def test_names_that_differ_in_case_alone_are_refused(load, groups):
    first, last = groups[0], groups[-1]
    names = {first: ["Name"]}
    names[last] = [*names.get(last, []), "name"]
    with pytest.raises(ConfigError, match="'Name' and 'name' differ only in letter case"):
        load(**names)


@pytest.mark.parametrize(
    ("names", "run"),
    [
        ({"dumps": ["main", "main-big"], "students": ["big-small", "small"], "recipes": ["kd"]},
         "main-big-small-kd-SEED"),
        ({"students": ["r20", "r20-kd"], "recipes": ["kd-t4", "t4"]}, "main-r20-kd-t4-SEED"),
        ({"students": ["a", "a-b"], "recipes": plain("b-c", "c")}, "baseline-a-b-c-SEED"),
        ({"dumps": ["baseline-a"], "students": ["a", "b"],
          "recipes": {"kd": {"loss": "kd"}, **plain("b-kd")}}, "baseline-a-b-kd-SEED"),
        ({"dumps": ["main", "x-y"], "students": ["y-a", "a"], "recipes": ["kd"],
          "ensembles": {"x": {"of": ["main", "x-y"]}}}, "x-y-a-kd-SEED"),
        ({"teachers": ["tutor", "p-kd-0"], "dumps": ["teacher"], "students": ["p"], "recipes": ["kd"]},
         "teacher-p-kd-0"),
        # Where letter case does not count.
        ({"dumps": ["main", "Main-big"], "students": ["Big-small", "small"], "recipes": ["kd"]},
         "main-big-small-kd-SEED"),
        ({"students": ["r20", "R20-kd"], "recipes": ["kd-T4", "t4"]}, "main-r20-kd-t4-SEED"),
        ({"teachers": ["tutor", "P-kd-0"], "dumps": ["Teacher"], "students": ["p"], "recipes": ["kd"]},
         "teacher-p-kd-0"),
    ],
)  # fmt: skip
def test_two_runs_of_one_name_are_refused_though_no_sweep_names_them(load, names, run):
    with pytest.raises(ConfigError, match=rf"params.yaml: .* and .* would both be named {run};"):
        load(**names)


def test_both_combinations_are_named(load):
    with pytest.raises(ConfigError) as caught:
        load(dumps=["main", "main-big"], students=["big-small", "small"], recipes=["kd"])
    assert "dump 'main', student 'big-small', recipe 'kd'" in str(caught.value)
    assert "dump 'main-big', student 'small', recipe 'kd'" in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        {"dumps": ["main", "main-big"], "students": ["small", "smaller"], "recipes": ["kd"]},
        # `r20-kd-t4` is a run of a dump, `r20-kd-t4` of baselines is another one.
        {"students": ["r20", "r20-kd"], "recipes": {"kd-t4": {"loss": "kd"}, **plain("t4")}},
        {
            "dumps": ["baseline-a"],
            "students": ["a-b", "b"],
            "recipes": {"kd": {"loss": "kd"}, **plain("c")},
        },
        {"teachers": ["tutor", "p-kd"], "dumps": ["teacher"], "students": ["p"], "recipes": ["kd"]},
        # Seeds have no leading zeros.
        {"teachers": ["tutor", "p-kd-01"], "dumps": ["teacher"], "students": ["p"], "recipes": ["kd"]},
    ],
)
def test_hyphens_alone_are_no_reason_to_refuse(load, names):
    load(**names)


def test_a_group_without_entries_is_empty(tmp_path):
    (tmp_path / "params.yaml").write_text("students:\nrecipes: # none yet\n")
    params = load_params(tmp_path / "params.yaml", ("students.new.model=resnet20",))
    assert (list(params.students), params.recipes) == (["new"], {})


@pytest.mark.parametrize("name", ["baseline", "Baseline"])
def test_a_dump_that_is_called_as_runs_without_one_is_refused(load, name):
    with pytest.raises(ConfigError, match=f"a dump is named '{name}', which is reserved"):
        load(dumps=[name])


def test_a_name_of_an_empty_group_is_asked_for(load):
    with pytest.raises(ConfigError, match=r"sweep.students names 'pupil'; none are defined; add it"):
        load("sweep.students=[pupil]", students=[])
