"""Places: whole files under conditions that keep many writers apart, and one line for what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from pipeline.core.errors import ConfigError, CorruptStoreError, StoreError
from pipeline.places import folder, objects
from pipeline.places.folder import LocalPlace
from pipeline.places.objects import ObjectPlace
from pipeline.store.leftovers import is_passing

WRITERS = 8


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return LocalPlace(tmp_path / "main.zarr")
    if request.param == "memory":
        return ObjectPlace.in_memory().below("main.zarr")
    server, bucket = request.getfixturevalue("s3_server"), f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=bucket)
    return ObjectPlace.open(f"s3://{bucket}/logits/main.zarr")


def at_once(work, count=WRITERS):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_file_is_what_was_put_last(place):
    assert place.get("a/b") is None
    assert place.tag("a/b") is None
    first, second = place.put("a/b", b"one"), place.put("a/b", b"twelve")
    assert first != second == place.tag("a/b")
    assert place.get("a/b") == b"twelve"
    place.delete(["a/b", "missing"])
    assert not place.exists("a/b")


@pytest.mark.parametrize(("first", "count", "expected"), [(1, None, b"bc"), (1, 1, b"b"), (1, 9, b"bc")])
def test_ranges_end_with_the_file(place, first, count, expected):
    place.put("file", b"abc")
    assert place.get("file", first, count) == expected
    assert place.get("file", 3) == b""
    assert place.get("missing", first, count) is None


def test_a_listing_has_names_and_sizes(place):
    for name in ("zarr.json", "train/codes/c/0/0", "train/zarr.json", "training"):
        place.put(name, name.encode())
    assert place.sizes() == {name: len(name) for name in place.sizes()}
    assert sorted(place.sizes()) == ["train/codes/c/0/0", "train/zarr.json", "training", "zarr.json"]
    assert sorted(place.sizes("train")) == ["train/codes/c/0/0", "train/zarr.json"]
    assert sorted(place.below("train").sizes()) == ["codes/c/0/0", "zarr.json"]
    assert place.sizes("missing") == {}


def test_one_of_many_writers_creates(place):
    made = at_once(lambda number: place.put_if_absent("zarr.json", bytes([number]) * 1000))
    winner = next(number for number, tag in enumerate(made) if tag)
    assert made.count(None) == WRITERS - 1
    assert place.get("zarr.json") == bytes([winner]) * 1000
    assert list(place.sizes()) == ["zarr.json"]


def test_no_replacement_of_many_writers_is_lost(place):
    place.put("number", b"0")

    def add(_: int) -> None:
        done = None
        while done is None:
            tag, number = place.tag("number"), int(place.get("number"))
            done = place.put_if_match("number", b"%d" % (number + 1), tag)

    at_once(add)
    assert place.get("number") == b"%d" % WRITERS
    assert place.put_if_match("number", b"0", "other") is None


@pytest.mark.parametrize("count", [3, 40])
def test_sizes_of_many_files_are_told(place, count):
    names = [f"records/{number}" for number in range(count)]
    for name in names[1:]:
        place.put(name, name.encode())
    assert place.sizes_of(names) == {name: len(name) for name in names[1:]}
    assert sorted(place.names("records")) == sorted(name.partition("/")[2] for name in names[1:])
    assert place.names("missing") == []


def test_files_move_with_their_names(place):
    growth = place.below("growth")
    growth.put("train/0", b"1")
    place.put("train/0", b"old")
    growth.move(["train/0"], place)
    assert place.sizes() == {"train/0": 1}


def test_a_folder_without_hard_links_is_a_place(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    place = LocalPlace(tmp_path)
    assert place.put_if_absent("zarr.json", b"1")
    assert place.put_if_absent("zarr.json", b"2") is None
    assert place.get("zarr.json") == b"1"


@pytest.mark.parametrize("token", ["", "killed"])
def test_a_claim_of_a_killed_process_is_taken_over(tmp_path, monkeypatch, token):
    monkeypatch.setattr(folder, "_STALE_SECONDS", 0.2)
    place = LocalPlace(tmp_path)
    tag, claim = place.put("manifest.json", b"1"), tmp_path / ".manifest.json.claiming"
    claim.write_text(token)
    assert place.put_if_match("manifest.json", b"2", tag)
    assert list(place.sizes()) == ["manifest.json"]


def test_what_a_kill_leaves_of_a_claim_is_known_as_a_leftover(tmp_path, monkeypatch):
    place, seen = LocalPlace(tmp_path), set[str]()
    tag = place.put("manifest.json", b"1")
    for name in ("rename", "unlink"):
        original = getattr(os, name)

        def spy(path, *rest, original=original):
            seen.update(os.listdir(tmp_path))
            return original(path, *rest)

        monkeypatch.setattr(os, name, spy)
    assert place.put_if_match("manifest.json", b"2", tag)
    seen.remove("manifest.json")
    assert len(seen) >= 2
    assert all(is_passing(name) for name in seen)


def test_a_link_to_nothing_is_replaced_and_any_other_name_is_taken(tmp_path):
    place, target = LocalPlace(tmp_path), tmp_path / "target"
    (tmp_path / "gone").symlink_to(target)
    assert place.put_if_absent("gone", b"new") == place.tag("gone")
    assert (place.get("gone"), target.exists(), (tmp_path / "gone").is_symlink()) == (b"new", False, False)
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    assert place.put_if_absent("link", b"new") is None
    assert place.put_if_absent("gone", b"other") is None
    assert (target.read_bytes(), place.get("gone")) == (b"old", b"new")


def test_a_claim_that_came_in_place_of_a_killed_ones_is_put_back(tmp_path):
    claim = tmp_path / ".manifest.json.claiming"
    claim.write_text("living")
    folder._remove_claim(claim, "killed")
    assert claim.read_text() == "living"
    assert [file.name for file in tmp_path.iterdir()] == [claim.name]


def test_a_file_that_another_process_swept_is_written_again(tmp_path, monkeypatch):
    link, seen = os.link, []

    def sweeping(source, target):
        if not seen:
            os.unlink(source)
        seen.append(source)
        link(source, target)

    monkeypatch.setattr(os, "link", sweeping)
    assert LocalPlace(tmp_path).put_if_absent("zarr.json", b"1")
    assert len(seen) == 2


def test_a_folder_that_another_process_removed_is_made_again(tmp_path, monkeypatch):
    place, write = LocalPlace(tmp_path), folder.write_new
    meanwhile = [(tmp_path / "records").rmdir] * 2

    def removed(*arguments):
        if meanwhile:
            meanwhile.pop()()
        return write(*arguments)

    monkeypatch.setattr(folder, "write_new", removed)
    assert place.put_if_absent("records/one", b"1") == place.tag("records/one")
    assert not meanwhile
    meanwhile = [lambda: (tmp_path / "more").rmdir()] * 99
    with pytest.raises(FileNotFoundError):
        place.put("more/one", b"1")


def test_names_that_lead_out_of_a_folder_are_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path)
    place = LocalPlace(tmp_path)
    for name in ("../x", "out/x"):
        for write in (place.put, place.put_if_absent, lambda name, _: place.delete([name])):
            with pytest.raises(CorruptStoreError):
                write(name, b"")


def test_a_place_of_objects_moves_to_other_processes(place):
    place.put("file", b"1")
    if "memory" not in str(place):
        assert pickle.loads(pickle.dumps(place)).get("file") == b"1"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///main.zarr", "ftp://bucket/x", "s3://b/x?versionId=1", "s3://hun:ter2@bucket/x"]
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url):
    with pytest.raises(ConfigError) as caught:
        ObjectPlace.open(url)
    assert "ter2" not in str(caught.value)


class Faulty(BaseHTTPRequestHandler):
    """A service that fails as the name of the object says."""

    def do_GET(self) -> None:
        what = self.path.rpartition("/")[2]
        if what == "slow":
            time.sleep(1.0)
        status, code = {"forbidden": (403, b"AccessDenied"), "busy": (503, b"SlowDown")}.get(
            what, (200, b"")
        )
        body = b"<Error><Code>%b</Code><AWSAccessKeyId>hunter2</AWSAccessKeyId></Error>" % code
        self.send_response(status)
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 08:00:00 GMT")
        self.send_header("Content-Length", str(2 * len(body) if what == "half" else len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def faulty(monkeypatch):
    """A place of objects on the faulty service, with little patience."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(objects, "_REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(objects, "_RETRIES", 1)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield ObjectPlace.open("s3://bucket/main.zarr")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forbidden", "may not be read with these credentials .403 Forbidden AccessDenied."),
        ("busy", "cannot be read .503 Service Unavailable SlowDown."),
        ("half", "the service sent only a part of the object"),
        ("slow", "the service does not answer"),
    ],
)
def test_what_a_service_refuses_is_told_in_one_line_without_secrets(faulty, name, message):
    with pytest.raises(StoreError, match=f"s3://bucket/main.zarr/{name}: .*{message}") as caught:
        faulty.get(name)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_bucket_that_may_only_be_read_is_named(faulty):
    with pytest.raises(StoreError, match=r"zarr/forbidden: may not be written with these credentials"):
        faulty.put_if_absent("forbidden", b"1")


def test_a_bucket_that_does_not_exist_is_named(s3_server):
    place = ObjectPlace.open("s3://no-such-bucket/main.zarr")
    for ask in (lambda: place.get("x"), lambda: place.put("x", b""), place.sizes):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/.*the bucket does not exist"):
            ask()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StoreError, match=r"needs the library obstore; run: .*cloud"):
        ObjectPlace.open("s3://bucket/x")


def test_a_forked_process_is_refused_instead_of_waiting_forever(place):
    place.put("file", b"1")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def read() -> None:
        try:
            theirs.send(place.get("file").decode())
        except StoreError as error:
            theirs.send(str(error))

    process = context.Process(target=read)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        process.start()
    assert ours.poll(60)
    told = ours.recv()
    process.join()
    assert told == "1" if isinstance(place, LocalPlace) else "start the process by spawn" in told
