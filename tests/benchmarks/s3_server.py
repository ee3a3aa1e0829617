"""A local S3 server in a process of its own, which answers late and fails at times if asked to.

    python -m tests.benchmarks.s3_server     # prints its port

Owns the network that benchmarks of object storage see: a delay per request, a share of requests that fail,
and counts of requests and bytes. Of failing requests, one half is answered by 503 Slow Down, the other half
by the first half of the object.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

_CONTROL = "/_network"
# E.g. /bucket/logits/main.zarr/train/codes/c/0/0/0; keys, digests and labels are (N,), one number behind c.
_SHARD = re.compile(r"\.zarr/train/\w+/c/\d+/\d+")
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Args:
        address: e.g. http://127.0.0.1:5000.
    """

    address: str

    def behave(self, *, delay_seconds: float = 0.0, failing: float = 0.0) -> None:
        """Delay each request by so long, and let a share of the requests fail; counts begin anew."""
        self._ask({"delay_seconds": delay_seconds, "failing": failing})

    def counts(self) -> dict[str, int]:
        """Return requests, failed requests, and bytes that were sent, in all and of training shards."""
        return self._ask(None)

    def _ask(self, asked: dict[str, float] | None) -> dict[str, int]:
        content = None if asked is None else json.dumps(asked).encode()
        with urlopen(Request(self.address + _CONTROL, data=content)) as answer:
            found: dict[str, int] = json.load(answer)
            return found


@contextmanager
def serving() -> Iterator[Server]:
    """Start a server, and name it in the environment of this process and its children."""
    command, before = [sys.executable, "-m", "tests.benchmarks.s3_server"], dict(os.environ)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = f"http://127.0.0.1:{int(process.stdout.readline())}"
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": address,
            }
            yield Server(address)
        finally:
            os.environ.clear()
            os.environ.update(before)
            process.kill()


class _Network:
    """A WSGI application around another one."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._lock = application, threading.Lock()
        self._behaviour: dict[str, float] = {"delay_seconds": 0.0, "failing": 0.0}
        self._random, self._counts = random.Random(0), Counter[str]()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == _CONTROL:
            return self._controlled(environ, start)
        with self._lock:
            draw, delay = self._random.random(), self._behaviour["delay_seconds"]
            failing = self._behaviour["failing"]
            self._counts["requests"] += 1
            self._counts["failed"] += draw < failing
        time.sleep(delay)
        if draw < failing / 2:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        return self._counted(path, self._application(environ, start), is_cut=draw < failing)

    def _counted(self, path: str, content: Iterable[bytes], *, is_cut: bool) -> Iterator[bytes]:
        whole = b"".join(content)
        sent = whole[: len(whole) // 2] if is_cut else whole
        with self._lock:
            self._counts["bytes"] += len(sent)
            self._counts["bytes of train shards"] += len(sent) * bool(_SHARD.search(path))
        yield sent

    def _controlled(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            told = json.dumps(self._counts).encode()
            if environ["REQUEST_METHOD"] == "POST":
                length = int(environ["CONTENT_LENGTH"])
                self._behaviour = json.loads(environ["wsgi.input"].read(length))
                self._counts = Counter()
        start("200 OK", [("Content-Type", "application/json")])
        return [told]


def main() -> None:
    """Serve until the process is killed; print the port."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    network = _Network(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, network, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
