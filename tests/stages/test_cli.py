"""The command line itself: help without torch, exit statuses, one line for an error."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

from pipeline.core.errors import ConfigError, PipelineError
from pipeline.core.files import parse_object
from stages.cli import COMMANDS, cli, main
from stages.environment import fill_in
from tests import patience
from tests.stages.conftest import run

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _signals_as_before():
    """`main` handles SIGTERM; the test process must not keep that."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call(capsys):
    """Run a command in this process and return its status, stdout and stderr."""

    def run(*arguments: str) -> SimpleNamespace:
        capsys.readouterr()
        status = 0
        try:
            main(arguments)
        except SystemExit as done:
            status = done.code
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with small images and the parameters that name them."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels,
             test_images=images[:9], test_labels=labels[:9])  # fmt: skip
    (tmp_path / "params.yaml").write_text("data: {source: 'npz:x.npz', validation: 0.2}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Make `pipeline stand-in` run a function, for what cannot be made to happen in time."""

    def install(function: Callable[[], object]) -> None:
        @click.command()
        @click.option("--debug", is_flag=True)
        def command(debug: bool) -> None:
            function()

        monkeypatch.setitem(COMMANDS, "stand-in", "A test.")
        monkeypatch.setitem(sys.modules, "stages.stand_in", SimpleNamespace(command=command))

    return install


def _raises(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


# Help


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from stages.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'torchvision', 'zarr', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = patience.call([sys.executable, "-c", code], env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "cache-logits" in done.stdout


def test_help_lists_every_command(call):
    done = call("--help")
    assert (done.status, done.err) == (0, "")
    for name, text in COMMANDS.items():
        assert name in done.out
        assert text.split()[0] in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_has_its_own_help(call, name):
    done = call(name, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Usage: ")
    assert "--debug" in done.out


@pytest.mark.parametrize("name", ["prepare", "train-teacher", "cache-logits", "train-student"])
def test_commands_that_read_parameters_take_a_file_and_overrides(name):
    options = {
        option
        for parameter in cli.get_command(None, name).params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert {"--params", "--set", "--debug"} <= options


# Status 0


def test_a_command_that_is_done_says_so_on_stdout(call, folder):
    done = call("prepare")
    assert done.status == 0
    assert done.out.startswith("npz:x.npz: 3 classes, train ")
    assert (folder / "data/prepared/dataset.json").exists()


def test_another_parameter_file_and_overrides_are_used(call, folder):
    (folder / "params.yaml").rename(folder / "other.yaml")
    done = call("prepare", "--params", "other.yaml", "--set", "data.validation=0")
    assert done.status == 0
    assert "train 60, validation 0, test 9" in done.out


# Status 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.source=npz:none.npz"], "none.npz: no such file"),
        (["--set", "data.sorce=x"], "unknown key data.sorce"),
        (["--set", "data.source=fashon-mnist-10k"], "did you mean 'fashion-mnist-10k'?"),
        (["--params", "none.yaml"], "none.yaml: no such file"),
        (["--set", "data.seed"], "expected key.path=value"),
    ],
)
def test_an_error_of_the_user_is_status_one_and_one_line_on_stderr(call, folder, arguments, message):
    done = call("prepare", *arguments)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("pipeline: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_folder_in_place_of_the_parameters_is_an_error_of_the_user(call, folder):
    done = call("prepare", "--params", ".")
    assert done.status in (1, 2)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("position", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(folder, position):
    arguments = ["prepare", "--set", "data.sorce=x"]
    arguments = ["--debug", *arguments] if position == "before" else [*arguments, "--debug"]
    with pytest.raises(PipelineError, match=r"unknown key data.sorce"):
        main(arguments)


def test_a_file_that_cannot_be_decoded_is_named_without_a_traceback(call, folder):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "x.jpg").write_bytes(b"no picture")
    done = call("prepare", "--set", "data.source=folder:.", "--set", "data.validation=0")
    assert done.status == 1
    assert "train/a/x.jpg: not a readable image" in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("pipeline: 4 of 4 images cannot be read: train/a/x.jpg, train/b/x.jpg, ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("error", [KeyError("x"), OSError("odd"), ValueError("x"), RecursionError("x\ny")])
def test_an_error_that_nobody_foresaw_is_one_line_that_asks_for_debug(call, stand_in, error):
    stand_in(_raises(error))
    done = call("stand-in")
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"pipeline: unexpected {type(error).__name__}: ")
    assert "; this is a bug, or a damaged input" in done.err
    assert done.err.endswith("run again with --debug for the traceback\n")
    with pytest.raises(type(error)):
        main(["stand-in", "--debug"])


def test_an_error_that_nobody_foresaw_says_where_it_was(call, stand_in):
    stand_in(lambda: parse_object(None))
    done = call("stand-in")
    assert re.match(r"pipeline: unexpected TypeError: .* \(at pipeline/core/files\.py:\d+\); ", done.err)


@pytest.mark.parametrize("message", ["a\x1b[31mb", "a\nb", "a\rb", "a\x00b", "a\u202eb", "a\udcffb"])
def test_nothing_in_a_message_is_obeyed_by_a_terminal(call, stand_in, message):
    stand_in(_raises(ConfigError(message)))
    done = call("stand-in")
    assert done.err == f"pipeline: {repr(message)[1:-1]}\n"


def test_a_message_is_at_most_two_thousand_characters_and_keeps_its_end(call, stand_in):
    stand_in(_raises(ConfigError("x" * 10**6 + "; rename it")))
    done = call("stand-in")
    assert len(done.err) < 2100
    assert done.err.endswith("; rename it\n")


@pytest.mark.parametrize("arguments", [["tra\x07in"], ["prepare", "--w\x07"], ["verify", "x", "\x07"]])
def test_words_of_wrong_usage_are_escaped_too(call, arguments):
    done = call(*arguments)
    assert done.status == 2
    assert "\\x07" in done.err
    assert "\x07" not in done.err


# The surroundings

COMMAND = [sys.executable, "-c", "from stages.cli import main; main()"]


def _inspect(store: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, "inspect", store], **{"env": ENVIRONMENT, "capture_output": True, **options}
    )


def test_a_reader_that_goes_away_ends_a_command_without_a_word(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "--help"], env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_results_that_cannot_be_written_are_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"pipeline: output: No space left on device; free some space")


def test_a_name_that_is_no_text_is_printed_under_any_locale(tmp_path):
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = _inspect(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xc3\xa9"), env={**ENVIRONMENT, **bare})
    assert done.returncode == 1
    assert b"no such store" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_user_without_a_name_gets_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pwd", SimpleNamespace(getpwuid=_raises_key_error))
    fill_in()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    monkeypatch.delenv("LOGNAME")


def _raises_key_error(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")


def test_a_user_with_a_name_keeps_it(monkeypatch):
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.setenv("USER", "somebody")
    fill_in()
    assert getpass.getuser() == "somebody"
    assert "LOGNAME" not in os.environ


def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(monkeypatch):
    show = "from stages.environment import fill_in; fill_in(); import os; print(os.environ.get('{}'))"
    plain = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("GOMP", "OMP_W"))}
    for given, expected in (
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ):
        command = [sys.executable, "-c", show.format("GOMP_SPINCOUNT")]
        done = subprocess.run(command, env=plain | given, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


# Status 2


def test_a_mistyped_command_gets_a_suggestion(capsys):
    assert run("inspekt", "main") == 2
    assert "No such command 'inspekt'; did you mean 'inspect'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepair"],
        ["prepare", "--wrokers", "2"],
        ["prepare", "--workers", "0"],
        ["prepare", "--workers", "two"],
        ["prepare", "extra"],
        ["train-teacher"],
        [],
    ],
)
def test_wrong_usage_is_status_two_with_the_usage_on_stderr(call, folder, arguments):
    done = call(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Usage:" in done.err
    assert "Traceback" not in done.err


def test_a_device_that_is_not_there_is_wrong_usage(call, folder):
    done = call("train-teacher", "x", "--device", "toaster")
    assert done.status == 2
    assert "--device" in done.err
    assert "toaster" in done.err


# Interruption


def test_an_interrupted_command_is_status_130_in_one_line(call, stand_in):
    stand_in(_raises(KeyboardInterrupt()))
    done = call("stand-in")
    assert done.status == 130
    assert done.err.strip().startswith("pipeline: interrupted; completed work is saved")


def test_a_terminated_command_is_status_143_in_one_line(call, stand_in):
    stand_in(lambda: signal.raise_signal(signal.SIGTERM))
    done = call("stand-in")
    assert done.status == 143
    assert done.err.startswith("pipeline: terminated; completed work is saved")
    assert done.err.count("\n") == 1


def test_a_process_that_waits_for_its_input_ends_on_sigterm(folder):
    """Reading its parameters from a pipe, it is known to be in the middle of its work.

    Its stderr also shows that importing everything that is heavy prints nothing.
    """
    os.mkfifo("pipe.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", "from stages.cli import main; main()",
         "prepare", "--params", "pipe.yaml"],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with open("pipe.yaml", "w"):  # opens when the process reads
        process.send_signal(signal.SIGTERM)
        _, err = patience.finish(process)
    assert process.returncode == 143
    assert err == "pipeline: terminated; completed work is saved, run the same command to resume\n"


def test_a_command_runs_on_another_thread_too(project, capsys):
    """As in a worker of Ray Train; a handler of signals can be set on the main thread alone."""
    ended: list[int | str | None] = []

    def work() -> None:
        try:
            main(["plan", "main"])
        except SystemExit as done:
            ended.append(done.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == []
    assert "forward passes" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_dump_in_its_folder_may_be_named(project, capsys, command):
    assert run("cache-logits", "main") == 0
    assert run(command, "main") == 0
    assert "data/logits/main.zarr" in capsys.readouterr().out
    # A folder of this name is meant if there is one.
    Path("main").mkdir()
    assert run(command, "main") == 1
    assert "main: no such store" in capsys.readouterr().err
