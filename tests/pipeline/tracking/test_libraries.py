"""Trackers through their own libraries, which write local files; run by `make heavy`."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest
import yaml

from pipeline.tracking.log import RunLog
from pipeline.tracking.tracker import TrackedRun
from tests.stages.conftest import begin, run

PARAMETERS = {"seed": 0, "recipes.kd": {"loss": "kd", "settings": {"odd key (1)": "x" * 9000}}}
IDENTITY = {"seed": 0}
# Warnings of the libraries about each other.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)  # fmt: skip


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def interrupted_and_resumed(tracker: str) -> None:
    """Tell a tracker of a run that is killed in epoch 2, before its state was saved, and resumes."""
    for finished, losses in ((0, (4.0, 2.0)), (1, (3.0, 1.0))):
        run = TrackedRun(name="main-a-kd-0", folder=Path("logs"), parameters=PARAMETERS)
        with RunLog([tracker], run, Path("ids.json")) as log:
            log.begin(IDENTITY, finished)
            for number, loss in enumerate(losses, finished + 1):
                log.epoch(number, {"train/loss": loss, "validation/top1": 0.5})
            if finished:
                log.end({"test/top1": 0.75})
    assert not Path("ids.json").exists()


@needs("tensorboard")
def test_tensorboard_shows_each_epoch_once_and_forgets_an_earlier_run():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted_and_resumed("tensorboard")

    def read() -> EventAccumulator:
        found = EventAccumulator("logs/tensorboard/main-a-kd-0")
        found.Reload()
        return found

    found = read()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(1, 4.0), (2, 3.0), (3, 1.0)]
    assert [(event.step, event.value) for event in found.Scalars("test/top1")] == [(3, 0.75)]
    (parameters,) = found.Tensors("parameters/text_summary")
    assert "| recipes.kd.loss | kd |" in parameters.tensor_proto.string_val[0].decode()
    # The same name again, after the run was finished: a new run.
    new = TrackedRun(name="main-a-kd-0", folder=Path("logs"), parameters=PARAMETERS)
    with RunLog(["tensorboard"], new, Path("ids.json")) as log:
        log.begin(IDENTITY, 0)
        log.epoch(1, {"train/loss": 9.0})
    assert [(event.step, event.value) for event in read().Scalars("train/loss")] == [(1, 9.0)]


@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow_keeps_one_local_run_with_parameters_and_figures(monkeypatch):
    import mlflow

    interrupted_and_resumed("mlflow")
    client = mlflow.MlflowClient("sqlite:///logs/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("softlabel-pipeline")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("main-a-kd-0", "FINISHED")
    assert found.data.params["recipes.kd.loss"] == "kd"
    assert len(found.data.params["recipes.kd.settings.odd key _1_"]) == 5000
    assert found.data.metrics == {"train/loss": 1.0, "validation/top1": 0.5, "test/top1": 0.75}
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 4.0), (2, 2.0), (2, 3.0), (3, 1.0)]


@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow_follows_the_user_s_settings_and_starts_over_if_its_run_is_gone(monkeypatch, capsys):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "distil")
    for _ in range(2):
        new = TrackedRun(name="main-a-kd-0", folder=Path("logs"), parameters={})
        with RunLog(["mlflow"], new, Path("ids.json")) as log:
            log.begin(IDENTITY, 0)
        (ids,) = json.loads(Path("ids.json").read_text()).values()
        Path("ids.json").write_text(Path("ids.json").read_text().replace(ids["mlflow"], "0" * 32))
    assert "starting a new one" in capsys.readouterr().err
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("distil").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED", "KILLED"]
    assert not Path("logs").exists()


@needs("mlflow", "sqlalchemy", "alembic")
def test_a_database_that_is_lost_in_the_middle_ends_the_tracker_alone(capsys):
    new = TrackedRun(name="main-a-kd-0", folder=Path("logs"), parameters={})
    with RunLog(["mlflow", "csv"], new, Path("ids.json")) as log:
        log.begin(IDENTITY, 0)
        with sqlite3.connect("logs/mlflow/mlflow.db") as database:
            database.execute("DROP TABLE latest_metrics")
        log.epoch(1, {"train/loss": 1.0})
        log.epoch(2, {"train/loss": 0.5})
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker mlflow failed" in line]
    assert len(said) == 1
    assert len(Path("logs/csv/main-a-kd-0.csv").read_text().splitlines()) == 3


@needs("wandb")
def test_wandb_writes_offline_runs_of_one_id():
    interrupted_and_resumed("wandb")
    folders = sorted(Path("logs/wandb").glob("offline-run-*"))
    # Two processes of one run, which `wandb sync` brings together by its id: offline-run-TIME-ID[-1].
    assert len(folders) == 2
    assert len({folder.name.split("-")[3] for folder in folders}) == 1
    files = [path for folder in folders for path in folder.glob("run-*.wandb")]
    content = b"".join(path.read_bytes() for path in files)
    for word in (b"main-a-kd-0", b"train/loss", b"validation/top1", b"test/top1", b"softlabel-pipeline"):
        assert word in content


@needs("tensorboard", "mlflow", "sqlalchemy", "alembic", "wandb")
def test_a_command_tells_all_of_them(tmp_path, capsys):
    begin(tmp_path)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["training"]["log"] = ["tensorboard", "mlflow", "wandb", "csv"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert run("prepare") == 0
    assert run("train-student", "pupil", "scratch", "0") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("baseline-pupil-scratch-0: test top-1")
    assert "tracker" not in captured.err
    assert sorted(path.name for path in Path("logs").iterdir()) == ["csv", "mlflow", "tensorboard", "wandb"]
