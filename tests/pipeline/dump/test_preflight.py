"""What a dump needs is compared with what is there before work is done."""

from __future__ import annotations

import pytest

from pipeline.core.errors import StoreError
from pipeline.dump import preflight
from pipeline.dump.preflight import Need, Rates, require_room

RATES = Rates(bytes_per_row=10.0, seconds_per_row=0.5)


@pytest.fixture
def there(monkeypatch):
    """Return a function that sets what is free."""

    def set_free(disk: int = 10**12, memory: int | None = 10**12) -> None:
        monkeypatch.setattr(preflight, "free_disk_bytes", lambda path: disk)
        monkeypatch.setattr(preflight, "free_memory_bytes", lambda: memory)

    return set_free


def need(rows: int = 1000, own: int | None = None, rates: Rates = RATES, memory: int = 5) -> Need:
    return Need.of(rows=rows, own_rows=rows if own is None else own, rates=rates, memory_bytes=memory)


def test_a_disk_that_cannot_hold_the_store_is_refused(there, tmp_path):
    there(disk=9_999)
    with pytest.raises(StoreError, match=r"need 10.0 kB, but the disk has 10.0 kB free; .*--out"):
        require_room(tmp_path, need())
    there(disk=10_000)
    require_room(tmp_path, need())


def test_the_disk_holds_what_others_make_too_and_time_is_ones_own(there, tmp_path, capsys):
    there()
    require_room(tmp_path, need(own=250))
    assert (
        "250 forward passes of training views to do, 2 min, 10.0 kB of 1.0 TB free disk space"
        in capsys.readouterr().err
    )


def test_short_memory_is_a_warning(there, tmp_path, capsys):
    there(memory=4)
    require_room(tmp_path, need())
    assert "may need 5 bytes of memory, but only 4 bytes" in capsys.readouterr().err
    there(memory=None)
    require_room(tmp_path, need())
    assert "of memory" not in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_to_do_or_known(there, tmp_path, capsys):
    there(disk=0)
    require_room(tmp_path, need(rows=0))
    require_room(tmp_path, need(rates=Rates()))
    assert capsys.readouterr().err == ""
