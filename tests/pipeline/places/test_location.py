"""Places of stores: what cannot be reached is told in one line, without the secrets of its address."""

from __future__ import annotations

import pytest
from zarr.storage import LocalStore, MemoryStore

from pipeline.core.errors import CorruptStoreError, StoreError
from pipeline.places.addresses import hidden, hidden_place, secrets_of, without
from pipeline.places.location import Location
from pipeline.store.reader import LogitStore
from stages.cli import main

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://bucket/main.zarr", "s3://bucket/main.zarr"),
        (f"ftp://me:{SECRET}@host:21/main.zarr", "ftp://***@host:21/main.zarr"),
        (f"ftp://me:{SECRET}/b@host/main.zarr", "ftp://***@host/main.zarr"),
        (f"https://{SECRET}@host/main.zarr", "https://***@host/main.zarr"),
        (f"https://host/main.zarr?sig={SECRET}&a=b", "https://host/main.zarr?***"),
        (f"see simplecache::https://a:{SECRET}@h/x and more", "see simplecache::https://***@h/x and more"),
        ("https://host:8080/a@b.zarr", "https://host:8080/a@b.zarr"),
        ("data/logits/main.zarr", "data/logits/main.zarr"),
    ],
)
def test_secrets_of_an_address_are_hidden(address, shown):
    assert hidden(address) == shown


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        *((f"ftp://me:hun{mark}ter2@host/a.zarr", "ftp://***@host/a.zarr") for mark in "'\"<> \n?#@:/"),
        (f"https://host/a.zarr#token={SECRET}", "https://host/a.zarr#***"),
        (
            f"zip://a.zarr::https://a:{SECRET}@h/x::ftp://b:{SECRET}@i/y",
            "zip://a.zarr::https://***@h/x::ftp://***@i/y",
        ),
        (f"s3:/a:it's {SECRET}@bucket/a.zarr", "s3:/***@bucket/a.zarr"),
        ("data/it's mine/a?b#c.zarr", "data/it's mine/a?b#c.zarr"),
    ],
)
def test_secrets_of_a_place_are_hidden_whatever_is_in_them(place, shown):
    assert hidden_place(place) == shown


def test_parts_of_a_password_are_hidden_where_a_library_cuts_it():
    secrets = secrets_of("ftp://me:hunter?two@host/x::https://you:third/4567@h/#fragment", {})
    said = without("Port could not be cast to integer value as 'hunter'; /4567@h; fragment; third", secrets)
    assert said == "Port could not be cast to integer value as '***'; /***@h; ***; ***"


def test_secrets_are_hidden_however_a_library_repeats_them():
    secrets = secrets_of(
        "ftp://me:hunt%40er2@host/x", {"client_kwargs": {"secret_key": "s3cr3t"}, "anon": "no"}
    )
    assert without("login of me:hunt@er2 (hunt%40er2, s3cr3t) at host: no", secrets) == (
        "login of *** (***, ***) at host: no"
    )


@pytest.mark.parametrize(
    "address",
    [
        f"ftp://me:{SECRET}@127.0.0.1:1/main.zarr",
        f"http://me:{SECRET}@127.0.0.1:1/main.zarr?token={SECRET}",
        f"gopher://me:{SECRET}@host/main.zarr",
        f"zip://inner::ftp://me:{SECRET}@127.0.0.1:1/main.zip",
        "://",
        f"x y://me:{SECRET}@",
        f"ftp://me:'{SECRET} {SECRET}@127.0.0.1:1/main.zarr",
        f"ftp://me:{SECRET}?@127.0.0.1:1/main.zarr",
        "http://[::1",
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_address_that_does_not_answer_ends_in_one_line(address, capsys):
    with pytest.raises(StoreError) as caught:
        LogitStore.open(address)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", address])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert SECRET not in said.out + said.err


def test_no_more_is_read_than_is_expected(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    for place in (tmp_path, str(tmp_path), f"file://{tmp_path}", LocalStore(tmp_path)):
        assert Location(place).find("file", 5) == b"12345"
        assert Location(place).find("other", 5) is None
        with pytest.raises(CorruptStoreError, match="file has 5 bytes, expected at most 4"):
            Location(place).find("file", 4)


def test_a_store_of_zarr_is_read_no_further_either():
    from zarr.core.buffer.cpu import Buffer

    location = Location(MemoryStore({"file": Buffer.from_bytes(b"12345")}))
    assert location.find("file", 5) == b"12345"
    with pytest.raises(CorruptStoreError, match="expected at most 3"):
        location.find("file", 3)


@pytest.mark.parametrize("name", ["../file", "/etc/passwd", "a/../file", "a//b", "", ".", "a\0b"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(CorruptStoreError, match="is not a valid file name in a store"):
        Location(tmp_path / "main.zarr").find(name)


def test_a_relative_folder_is_fixed_when_it_is_opened(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for place in ("here", "file://here", LocalStore("here")):
        monkeypatch.chdir(tmp_path)
        location = Location(place)
        monkeypatch.chdir("/")
        assert location.find("file") == b"x"
        assert Location(location.place).find("file") == b"x"
