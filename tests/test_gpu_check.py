"""The GPU check, run small on a CPU: its driver, its steps and its stored results."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.gpu import (
    __main__,
    crops,
    cuda_tests,
    dumps,
    half_precision,
    kept,
    loaders,
    processes,
    same_bytes,
    students,
)
from tests.benchmarks.gpu.findings import Findings, Setting
from tests.benchmarks.gpu.processes import ROOT, Plan
from tests.benchmarks.gpu.steps import AIMS, FULL_SECONDS, STEPS, Step
from tests.benchmarks.gpu.table import markdown, read_results

SMALL = Setting(device="cpu", small=True)
# Packages that a GPU machine may lack.
ABSENT = ("dvc", "matplotlib", "moto", "onnx", "onnxruntime", "onnxscript", "timm")
NO_SUCH_PACKAGES = f"""
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
"""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a machine without the packages in `ABSENT`."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NO_SUCH_PACKAGES)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def findings(tmp_path) -> Findings:
    return Findings(tmp_path / "step.json", {})


def _rows(tmp_path: Path) -> dict[str, Any]:
    return {row["aim"]: row for row in json.loads((tmp_path / "step.json").read_text())["rows"]}


# The driver.


def test_the_check_runs_without_what_travels_badly(bare, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(
        [*command, "--steps", "cuda_tests,same_bytes", "--minutes", "90"],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["cuda_tests.json", "same_bytes.json", "table.md"]
    for result in read_results(out):
        assert result["status"] == "done"
        assert {"torch", "zarr", "cpus", "device"} <= result["environment"].keys()
        assert result["command"].startswith("python -m tests.benchmarks.gpu --device cpu")
        assert result["rows"]
        assert all(row["holds"] for row in result["rows"])
    assert (out / "table.md").read_text() in done.stdout
    assert "In small: figures mean nothing." in done.stdout


def test_every_step_can_be_imported_without_what_travels_badly(bare):
    names = ", ".join(f"tests.benchmarks.gpu.{step.name}" for step in STEPS)
    code = f"import tests.benchmarks.gpu.run_step, {names}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=bare, check=False).returncode == 0


def test_the_driver_itself_needs_no_torch():
    code = "import sys, tests.benchmarks.gpu.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def run_all(tmp_path, monkeypatch) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Return a function from the code of each step to the exit status and the results.

    In the code, `file` is the path of the step's findings.
    """

    def run(*codes: str, **changes: Any) -> tuple[int, list[dict[str, Any]]]:
        steps = STEPS[: len(codes)]
        sources = {step.name: textwrap.dedent(code) for step, code in zip(steps, codes, strict=True)}

        def called(plan: Plan, step: Step, file: Path) -> list[str]:
            begin = f"import json, os, signal, subprocess, sys, time\nfile = {str(file)!r}\n"
            begin += 'open(file, "w").write(\'{"step": "s", "rows": [], "figures": {"found": 1}}\')\n'
            return [sys.executable, "-c", begin + sources[step.name]]

        monkeypatch.setattr(processes, "called", called)
        settings: dict[str, Any] = {
            "device": "cpu",
            "small": True,
            "seconds": FULL_SECONDS,
            "command": ["x"],
        }
        plan = Plan(out=tmp_path, **{**settings, **changes})
        status = __main__.run_all(plan, steps)
        return status, read_results(tmp_path, steps)

    return run


def test_a_step_that_fails_is_told_and_passed_over(run_all, tmp_path):
    status, (first, second) = run_all("print('before'); sys.exit('no such kernel')", "")
    assert status == 1
    assert (first["status"], first["exit_status"]) == ("failed", 1)
    assert first["last_lines"] == ["before", "no such kernel"]
    assert first["figures"] == {"found": 1}
    assert (second["status"], second["figures"]) == ("done", {"found": 1})
    assert "no such kernel" in (tmp_path / "table.md").read_text()


def test_a_step_out_of_time_ends_with_all_it_started_and_keeps_what_it_found(
    run_all, monkeypatch, tmp_path
):
    monkeypatch.setattr(Plan, "grant", lambda plan, step: 12.0 if step is STEPS[0] else 500.0)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    child = tmp_path / "child"
    status, (first, second) = run_all(
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(child)!r}, "w").write(str(started.pid))
        time.sleep(600)
        """,
        "",
    )
    assert status == 0
    assert (first["status"], first["figures"]) == ("out of time", {"found": 1})
    assert second["status"] == "done"
    assert not _runs(int(child.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process still runs after 10 seconds; zombies do not count."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_check_that_is_ended_keeps_what_it_has(run_all, tmp_path, name, expected):
    ends = f"os.kill(os.getppid(), signal.{name}); time.sleep(600)"
    status, results = run_all("", ends, "")
    assert status == expected
    assert [result["status"] for result in results] == ["done", "cut off"]
    assert results[1]["figures"] == {"found": 1}
    assert "cut off" in (tmp_path / "table.md").read_text()


def test_steps_without_time_are_not_begun(run_all):
    status, results = run_all("", "", seconds=1.0)
    assert status == 0
    assert [result["status"] for result in results] == ["not run", "not run"]
    assert results[0]["reason"].endswith("seconds are left")


def test_without_a_device_the_first_step_says_so_and_no_other_is_begun(run_all):
    status, results = run_all(f"print('no CUDA device'); sys.exit({processes.NO_DEVICE})", "")
    assert status == 1
    assert [result["status"] for result in results] == ["failed", "not run"]
    assert results[1]["reason"] == "no CUDA device"


def test_limits_are_parts_of_the_budget_and_what_is_left_goes_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = Plan(out=Path(), device="cpu", small=True, seconds=FULL_SECONDS / 2, command=[])
    assert plan.grant(STEPS[0]) == STEPS[0].seconds / 2
    now[0] += 5.0
    assert plan.grant(STEPS[1]) == (STEPS[0].seconds + STEPS[1].seconds) / 2 - 5.0
    assert sum(step.seconds for step in STEPS) == FULL_SECONDS


def test_unknown_steps_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.parsed(["--steps", "crops,nothing"])
    assert "unknown steps nothing; expected some of cuda_tests, crops" in capsys.readouterr().err


def test_figures_of_a_running_step_are_in_the_table(findings, tmp_path):
    findings.row("views", 2, "2 of 7: mixup, cutmix")
    findings.row("views", 3, "3 of 7: a|b")
    assert findings.broken == [AIMS["views"].measure]
    found = json.loads((tmp_path / "step.json").read_text())
    (line,) = [
        line for line in markdown([{**found, "step": "same_bytes"}]).splitlines() if "3 of 7" in line
    ]
    assert line == f"|  | {AIMS['views'].measure} | 3 of 7: a/b | 0 | **no** |"


# The steps.


def test_every_test_is_counted_whatever_comes_of_it(tmp_path, bare):
    """Parallel workers count too, and so do a test with a failing setup and an unreadable file."""
    (tmp_path / "test_first.py").write_text(
        textwrap.dedent(
            """
            import pytest

            pytestmark = pytest.mark.cuda

            @pytest.fixture
            def broken():
                raise ValueError("no set-up")

            def test_right(): pass
            def test_wrong(): assert 1 == 2, "these bytes differ"
            def test_broken(broken): pass
            def test_skipped(): pytest.skip("not here")
            """
        )
    )
    (tmp_path / "test_second.py").write_text("import no_such_module  # pytest.mark.cuda")
    (tmp_path / "test_third.py").write_text("def test_of_no_device(): raise ValueError")
    code = f"""
import sys
from pathlib import Path
from tests.benchmarks.gpu.cuda_tests import marked_files, run_tests
from tests.benchmarks.gpu.findings import Findings
folder = Path({str(tmp_path)!r})
run_tests(marked_files(folder), Findings(folder / "step.json", {{}}), 2)
"""
    environment = {name: value for name, value in bare.items() if not name.startswith("PYTEST_")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    figures = json.loads((tmp_path / "step.json").read_text())["figures"]
    failures = {failure["test"].rpartition("::")[2]: failure["message"] for failure in figures["failures"]}
    assert "these bytes differ" in failures["test_wrong"]
    assert "no set-up" in failures["test_broken"]
    assert any("No module named 'no_such_module'" in message for message in failures.values())
    assert (figures["passed"], figures["skipped"]) == (1, 1)
    assert len(failures) == 3


def test_the_files_of_the_cuda_tests_are_found():
    files = [str(file.relative_to(ROOT / "tests")) for file in cuda_tests.marked_files(ROOT / "tests")]
    assert tuple(files[: len(cuda_tests.FIRST)]) == cuda_tests.FIRST
    for name in files:
        ast.parse((ROOT / "tests" / name).read_text())


def test_resized_crops_are_compared_in_two_goes(tmp_path, findings):
    crops.run(SMALL, findings)
    row = _rows(tmp_path)["crops"]
    assert (row["value"], row["holds"]) == (0, True)
    figures = findings.figures
    assert figures["speed"]["float32"]["images_a_second"] > 0
    for geometry in figures["geometries"]:
        assert geometry["values"] == 20 * geometry["size"] ** 2 * 3


def test_bytes_are_compared_for_every_codec_operation_and_spec(tmp_path, findings):
    same_bytes.run(SMALL, findings)
    rows, figures = _rows(tmp_path), findings.figures
    assert {aim: row["holds"] for aim, row in rows.items()} == dict.fromkeys(
        ("codecs", "operations", "views"), True
    )
    assert set(figures["codecs_differing"]) == {
        *("fp16", "affine8", "affine6", "affine4", "features"),
        *("topk-1", "topk-5", "topk-100", "pq-8", "rvq-8"),
    }
    assert len(figures["operations_differing"]) == 10
    assert len(figures["views_differing"]) == 2 * len(same_bytes.SPECS)


def test_bytes_that_differ_are_counted_and_named(tmp_path, findings):
    one = torch.arange(6)
    assert same_bytes.differing(one, one.clone()) == 0
    assert same_bytes.differing(one, one.flip(0)) == 6
    assert same_bytes.differing(one, one.int()) == 6
    same_bytes._compare(findings, "codecs", [("fp16", 0), ("affine8", 3)])
    assert findings.figures["codecs_differing"] == {"fp16": 0, "affine8": 3}
    row = _rows(tmp_path)["codecs"]
    assert (row["found"], row["holds"]) == ("1 of 2: affine8", False)


def test_loaders_are_measured_alone_and_beside_a_step(tmp_path, findings):
    loaders.run(SMALL, findings)
    rows = _rows(tmp_path)
    assert rows.keys() == {"resident_alone", "resident_step", "staged_step", "graph"}
    assert rows["resident_alone"]["value"] > 0
    assert rows["graph"]["found"] == "not captured: CUDA graphs need a CUDA device"


def test_a_resident_step_sees_what_the_loader_gives(findings, tmp_path):
    """The step for graph capture, built from the loader's parts, sees the same batch to the bit."""
    from pipeline.store.reader import LogitStore
    from tests.benchmarks.datasets import made_up
    from tests.benchmarks.gpu.graphs import ResidentStep, compare
    from tests.benchmarks.student_epochs import make_loader

    rig = loaders.RESIDENT.rig(SMALL, made_up(12, 32, classes=10), str(tmp_path))
    rig = replace(rig, context=replace(rig.context, on_device=True))
    store = LogitStore.open(rig.dump("one", 1))
    step = ResidentStep(rig, store)
    expected = next(make_loader(rig.context, step.student, rig.views, store).epoch(0))
    found = step.on(torch.from_numpy(expected.rows)).batch()
    for name in ("images", "labels", "teacher_logits"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    # Two students of the same rows are equal; a student of different rows is not.
    other, orders = ResidentStep(rig, store), [torch.from_numpy(expected.rows)]
    result = compare(step, other, other, orders, rounds=1)
    assert (result.reason, result.difference) == ("", 0.0)
    assert result.speed is not None
    assert result.speed["median"] > 0
    result = compare(step, ResidentStep(rig, store), lambda: None, orders, rounds=1)
    assert result.difference is not None
    assert result.difference > 0.1


def test_a_dump_is_compared_with_bare_passes_with_and_without_what_comes_once(tmp_path, findings):
    times = {"bare": [2.0], **{f"{p}, {v}": [1.0 + 3 * v] for p in dumps.PATHS for v in (1, 3)}}
    dumps.tell(findings, times, {"bare": 100, "few": 1, "many": 3, "images": 100})
    found = findings.figures["dump_over_bare, staged"]
    assert found["whole"]["median"] == pytest.approx(0.02 / (10 / 300))
    assert found["steady"]["median"] == pytest.approx(0.02 / 0.03)
    assert _rows(tmp_path)["dump"]["value"] == pytest.approx(2 / 3)


def test_dumps_and_students_are_measured(tmp_path, findings):
    dumps.run(SMALL, findings)
    students.run(SMALL, findings)
    rows, figures = _rows(tmp_path), findings.figures
    assert rows.keys() == {"dump", "cross_entropy", "online"}
    assert all(row["value"] > 0 for aim, row in rows.items() if aim != "dump")
    assert figures["teacher_images_a_second"] > 0
    assert 0 < figures["bound"] < 1


def test_fp16_is_compared_with_fp32_after_skipped_steps(tmp_path, findings):
    half_precision.run(SMALL, findings)
    arms = findings.figures["arms"]
    assert [arms[name]["skipped_steps"] > 0 for name in half_precision.ARMS] == [False, False, True]
    assert arms["fp32"]["final_loss"] < 0.5 * arms["fp32"]["first_loss"]
    assert _rows(tmp_path)["half"]["value"] > 0.8


# Stored results.


def test_kept_results_are_a_column_of_their_card(tmp_path, findings):
    out, folder = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    head = {"step": "dumps", "device": "cuda", "small": False, "environment": {"device": "NVIDIA H200"}}
    Findings(out / "dumps.json", head).row("dump", 0.98, "0.980 [0.970, 0.990]")
    assert kept.keep(out, folder) == [folder / "nvidia-h200" / "dumps.json"]
    table = kept.readme_table(kept.cards(folder)).splitlines()
    assert table[0] == "| measure | aim | NVIDIA H200 |"
    assert f"| {AIMS['dump'].measure} | ≥ 0.97 | 0.980 [0.970, 0.990] |" in table
    assert f"| {AIMS['online'].measure} | ≤ 0.35 | not run |" in table
    assert kept.readme_table({}).splitlines()[0] == "| measure | aim | GPU |"


@pytest.mark.parametrize("change", [{"small": True}, {"device": "cpu"}])
def test_what_is_no_whole_check_on_a_gpu_is_not_kept(tmp_path, change):
    head = {"step": "dumps", "device": "cuda", "small": False, "environment": {"device": "x"}, **change}
    Findings(tmp_path / "dumps.json", head)
    with pytest.raises(ValueError, match="expected the results of a full check on a GPU"):
        kept.keep(tmp_path, tmp_path / "kept")
