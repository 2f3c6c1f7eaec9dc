"""The dashboard of a real daemon: by HTTP, and in a real browser."""

import http.client
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from support.daemon import Daemon

KEY: Final = "x-bursar-key"
PATIENCE_S: Final = 20.0


def dashboard(*, tls: bool = False, **sections: Any) -> Daemon:
    """A daemon, not yet started, with a dashboard on a free port."""
    section = {"listen": "127.0.0.1:0", "tls": tls, **sections.pop("dashboard", {})}
    return Daemon(dashboard=section, **sections)


def url_of(daemon: Daemon) -> str:
    """Where it is, without a slash at the end."""
    found = re.search(r"dashboard on (\S+)/\n", daemon.log)
    assert found is not None, daemon.log
    return found[1]


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass
class Asker:
    """Asks a dashboard; each request on a connection of its own.

    Attributes:
        url: Where it is.
        headers: What each request has besides what it says itself.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        parts = urlsplit(self.url)
        host, port = str(parts.hostname), int(parts.port or 0)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=self.tls)
        return http.client.HTTPConnection(host, port, timeout=PATIENCE_S)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """One request as it is given."""
        connection = self.connect()
        try:
            connection.request(method, path, body=body, headers=self.headers | (headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """A GET."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        """A POST of JSON as the page makes it."""
        usual = {"content-type": "application/json", KEY: "-"} | self.headers
        return self.ask("POST", path, json.dumps(body).encode(), usual | (headers or {}))

    def signed_in(self, secret: str) -> Self:
        """Another one, of a session of this token."""
        reply = self.post("/api/session", {"token": secret})
        assert reply.status == 200, reply.body
        cookie = str(reply.headers["set-cookie"]).partition(";")[0]
        headers = {"cookie": cookie, KEY: reply.json["key"]}
        return type(self)(self.url, self.headers | headers, self.tls)

    @contextmanager
    def watching(self, **headers: str) -> Iterator["Watcher"]:
        """The live picture, as long as the context lasts."""
        connection = self.connect()
        try:
            connection.request("GET", "/api/live", headers=self.headers | headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield Watcher(answer)
        finally:
            connection.close()


class Watcher:
    """The live picture as a browser keeps it: rows by table and key."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        self.rows: dict[tuple[str, str], Any] = {}
        self.ended: str | None = None
        self.ready = False
        self.message_bytes_max = 0

    def read(self) -> bool:
        """Takes one message; False where the stream has ended."""
        line = self._answer.readline()
        while line == b"\n":
            line = self._answer.readline()
        if not line:
            return False
        self.message_bytes_max = max(self.message_bytes_max, len(line))
        message = json.loads(line.removeprefix(b"data: "))
        for table, key, row in message.get("set", ()):
            self.rows[table, key] = row
        for table, key in message.get("gone", ()):
            del self.rows[table, key]
        self.ready = self.ready or "ready" in message
        self.ended = message.get("ended", self.ended)
        return True

    def until(self, what: Callable[["Watcher"], bool]) -> None:
        """Reads until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not what(self):
            assert self.read(), "the stream ended"
            assert time.monotonic() < deadline, self.rows

    def keys(self, table: str) -> set[str]:
        """The keys of a table."""
        return {key for name, key in self.rows if name == table}
