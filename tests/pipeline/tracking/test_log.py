"""Trackers of a run: started together, resumed by their ids, dropped when they fail."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.tracking.log import RunLog, require_installed, require_names
from pipeline.tracking.tracker import TrackedRun, flat

MINE = """
import json
from pathlib import Path

class Lines:
    made = 0

    def __init__(self, run):
        Lines.made += 1
        self.id = run.continues or f"number {Lines.made}"
        self.path = Path(run.folder, "lines.txt")
        self.tell("begin", self.id, run.name, run.epoch)

    def tell(self, *words):
        with self.path.open("a") as file:
            file.write(json.dumps(words) + chr(10))

    def epoch(self, number, figures):
        print("for people, not for programs")
        self.tell("epoch", number, figures)

    def end(self, figures):
        self.tell("end", figures)

class Full(Lines):
    def epoch(self, number, figures):
        raise OSError(28, "No space left on device")

class Shy:
    def __init__(self, run):
        raise RuntimeError("no server" + chr(10) + "at all")

class Stopped(Lines):
    def epoch(self, number, figures):
        raise KeyboardInterrupt

def nothing(run):
    return None
"""
IDENTITY = {"seed": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("trackers_of_mine.py").write_text(MINE)
    sys.modules.pop("trackers_of_mine", None)
    return tmp_path


def make(folder: Path, *names: str) -> RunLog:
    run = TrackedRun(name="main-a-kd-0", folder=folder, parameters={"seed": 0})
    return RunLog([name.replace("mine:", "trackers_of_mine:") for name in names], run, folder / "ids.json")


def lines(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / "lines.txt").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "main-a-kd-0.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_tracker_hears_of_begin_epochs_and_end(folder, capsys):
    with make(folder, "mine:Lines") as log:
        log.begin(IDENTITY, 0)
        log.epoch(1, {"train/loss": 0.5})
        log.end({"test/top1": 0.75})
    assert lines(folder) == [
        ["begin", "number 1", "main-a-kd-0", 0],
        ["epoch", 1, {"train/loss": 0.5}],
        ["end", {"test/top1": 0.75}],
    ]
    assert capsys.readouterr().out == ""
    assert not (folder / "ids.json").exists()


def test_an_interrupted_run_continues_and_a_finished_one_does_not(folder):
    for epoch, figures in ((0, None), (1, {}), (0, None)):
        with make(folder, "mine:Lines") as log:
            log.begin(IDENTITY, epoch)
            if figures is not None:
                log.end(figures)
    begins = [line for line in lines(folder) if line[0] == "begin"]
    assert [(line[1], line[3]) for line in begins] == [("number 1", 0), ("number 1", 1), ("number 3", 0)]


def test_two_unfinished_variants_of_a_run_keep_their_own_ids(folder):
    for seed in (0, 1, 0, 1):
        with make(folder, "mine:Lines") as log:
            log.begin({"seed": seed}, 0)
    begins = [line[1] for line in lines(folder) if line[0] == "begin"]
    assert begins == ["number 1", "number 2", "number 1", "number 2"]


def test_a_damaged_file_of_ids_costs_no_run(folder, capsys):
    (folder / "ids.json").write_text("[1, 2")
    with make(folder, "mine:Lines") as log:
        log.begin(IDENTITY, 0)
    assert "damaged; trackers start a new run" in capsys.readouterr().err
    assert len(json.loads((folder / "ids.json").read_text())) == 1


def test_a_failing_tracker_is_dropped_with_one_line_and_the_others_go_on(folder, capsys):
    with make(folder, "mine:Full", "csv") as log:
        log.begin(IDENTITY, 0)
        log.epoch(1, {"train/loss": 0.5})
        log.epoch(2, {"train/loss": 0.25})
    assert [row["train/loss"] for row in table(folder)] == ["0.5", "0.25"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "tracker trackers_of_mine:Full failed: OSError: [Errno 28] No space left on device" in said
    assert "the run goes on without it" in said


def test_a_tracker_that_cannot_start_stops_the_command_and_the_others_are_ended(folder):
    with pytest.raises(ConfigError, match="cannot start: RuntimeError: no server; correct its settings"):  # noqa: SIM117
        with make(folder, "mine:Lines", "mine:Shy") as log:
            log.begin(IDENTITY, 0)
    assert lines(folder)[-1] == ["end", None]


def test_an_interruption_is_no_failure_of_a_tracker(folder):
    with make(folder, "mine:Stopped") as log:
        log.begin(IDENTITY, 0)
        with pytest.raises(KeyboardInterrupt):
            log.epoch(1, {})
    assert lines(folder)[-1] == ["end", None]


def test_code_that_makes_no_tracker_is_refused(folder):
    with pytest.raises(ConfigError, match="returns a NoneType; expected an object with id, epoch and end"):
        make(folder, "mine:nothing").begin(IDENTITY, 0)


def test_the_table_of_a_resumed_run_has_each_epoch_once(folder):
    with make(folder, "csv") as log:
        log.begin(IDENTITY, 0)
        log.epoch(1, {"train/loss": 0.5})
        log.epoch(2, {"train/loss": 0.25, "validation/top1": 0.5})
    # Killed before the state of epoch 2 was saved.
    with make(folder, "csv") as log:
        log.begin(IDENTITY, 1)
        log.epoch(2, {"train/loss": 0.3})
    assert [(row["epoch"], row["train/loss"]) for row in table(folder)] == [("1", "0.5"), ("2", "0.3")]
    with make(folder, "csv") as log:
        log.begin({"seed": 7}, 0)
        log.epoch(1, {"train/loss": 1.0})
    assert [row["epoch"] for row in table(folder)] == ["1"]


def test_no_trackers_do_nothing(tmp_path):
    with RunLog() as log:
        log.begin(IDENTITY, 0)
        log.epoch(1, {})
        log.end({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["tensorbord"],
            "expected csv, tensorboard, .* or module:NAME of your own; did you mean 'tensorbo",
        ),
        (["csv", "csv"], "log lists 'csv' twice"),
    ],
)
def test_names_of_trackers_are_checked(names, message):
    with pytest.raises(ConfigError, match=message):
        require_names(names)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("pipeline.tracking.log.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlflow, which is not installed; run: pip install .*\[mlflow\]"):
        require_installed(["csv", "mlflow"])


def test_parameters_become_dotted_names():
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": (1, 2)}) == {"a.b.c": 1, "a.d": None, "e": (1, 2)}
