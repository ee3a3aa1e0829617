"""The job files of stages/examples without a cluster: each job's command, and the store of all jobs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from pipeline.store.lock import Slice
from stages.cache_logits import command as cache_logits
from stages.cli import cli
from stages.params_file import load_params
from stages.train_student import command as train_student
from tests.stages.conftest import run
from tests.stages.dvc_projects import ROOT
from tests.stages.projects import content

EXAMPLES = ROOT / "stages/examples"
# Prints its arguments in place of running them.
PIPELINE = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"


@pytest.fixture
def asked(tmp_path):
    """Return a function from a shell command and variables to the arguments that `pipeline` is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "pipeline").write_text(PIPELINE)
    (folder / "pipeline").chmod(0o755)

    def ask(*command: str, **variables: object) -> list[str]:
        told = {name: str(value) for name, value in variables.items()}
        environment = {**os.environ, **told, "PATH": f"{folder}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return ask


def array_of(script: Path) -> range:
    """The tasks that a script asks for."""
    (last,) = re.findall(r"^#SBATCH --array=0-(\d+)$", script.read_text(), re.M)
    return range(int(last) + 1)


def jobs(name: str) -> Iterator[tuple[int, int, list[str]]]:
    """The pods of a manifest: index, number of pods, and the shell command of each."""
    job = yaml.safe_load((EXAMPLES / name).read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert (spec["completionMode"], spec["parallelism"]) == ("Indexed", spec["completions"])
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for index in range(spec["completions"]):
        yield index, spec["completions"], [*container["command"], *container["args"]]


def require_runs(each: list[list[str]]) -> None:
    """Refuse runs that are unequal to those of params.yaml's sweep, or not understood."""
    params = load_params(ROOT / "params.yaml")
    names = set()
    for name, *arguments in each:
        assert name == "train-student"
        given = train_student.make_context(name, arguments).params
        params.student(given["student"]), params.recipe(given["recipe"])
        names.add((given["dump"], given["student"], given["recipe"], given["seed"]))
    assert len(names) == len(each)
    sweep = params.sweep
    taught = {("main", student, "kd", 0) for student in sweep.students}
    assert names - {(None, student, "scratch", 0) for student in sweep.students} == taught


def test_an_array_of_slurm_makes_the_dump_of_one_process(project, asked):
    assert run("cache-logits", "main", "--out", "one.zarr") == 0
    script = EXAMPLES / "slurm_dump.sh"
    tasks = array_of(script)
    for task in reversed(tasks):
        assert run(*asked("bash", str(script), "main", SLURM_ARRAY_TASK_ID=task)) == 0
    assert not Path("data/logits/main.zarr/manifest.json").exists()
    (completing,) = re.findall(r'afterok:\$array --wrap "pipeline (.*main)"', script.read_text())
    assert run(*completing.split()) == 0
    assert content(Path("data/logits/main.zarr")) == content(Path("one.zarr"))


def test_a_slurm_job_without_a_dump_says_so(tmp_path):
    script = EXAMPLES / "slurm_dump.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "name of a dump" in done.stderr


def test_each_job_of_slurm_trains_a_run_of_the_sweep(asked):
    script = EXAMPLES / "slurm_students.sh"
    require_runs([asked("bash", str(script), SLURM_ARRAY_TASK_ID=task) for task in array_of(script)])


def test_pods_make_all_parts_of_a_dump(asked):
    for index, count, command in jobs("kubernetes_dump.yaml"):
        name, *arguments = asked(*command, JOB_COMPLETION_INDEX=index)
        assert name == "cache-logits"
        given = cache_logits.make_context(name, arguments).params
        assert (given["dump"], given["part"]) == ("main", Slice(index, count))


def test_each_pod_trains_a_run_of_the_sweep(asked):
    each = [
        asked(*command, JOB_COMPLETION_INDEX=index)
        for index, _, command in jobs("kubernetes_students.yaml")
    ]
    require_runs(each)
    assert all("--follow" in arguments for arguments in each)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
def test_the_command_that_completes_the_work_is_understood(name):
    """It stands in a comment at the top."""
    text = (EXAMPLES / name).read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    (line,) = re.findall(r"pipeline ([a-z][^\"\n]*)", comments)
    command, *arguments = line.split()
    cli.get_command(click.Context(cli), command).make_context(command, arguments)
    assert command in (["cache-logits"] if "dump" in name else ["report", "sweep"])
