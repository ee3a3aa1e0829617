"""What user code prints goes to stderr, whichever threads run it, and stdout is itself again afterwards."""

from __future__ import annotations

import sys
import threading

import click

from pipeline.core.prints import prints_to_stderr


def test_prints_go_to_stderr_and_the_next_ones_to_stdout(capsys):
    with prints_to_stderr():
        print("inner")
        with prints_to_stderr():
            print("innermost")
        print("inner again")
    print("outer")
    assert capsys.readouterr() == ("outer\n", "inner\ninnermost\ninner again\n")


def test_threads_that_overlap_leave_stdout_as_it_was(capsys):
    before = sys.stdout
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with prints_to_stderr():
            first_is_in.set()
            second_is_in.wait(60)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(60)
        with prints_to_stderr():
            second_is_in.set()
            first_is_out.wait(60)
            print("of user code")

    threads = [threading.Thread(target=each) for each in (first, second)]
    for each in threads:
        each.start()
    first_is_out.wait(60)
    click.echo("of the program")
    for each in threads:
        each.join()
    assert sys.stdout is before
    click.echo("and more")
    assert capsys.readouterr() == ("of the program\nand more\n", "of user code\n")


def test_an_error_inside_passes_and_restores(capsys):
    before = sys.stdout
    try:
        with prints_to_stderr():
            raise ValueError
    except ValueError:
        pass
    assert sys.stdout is before
