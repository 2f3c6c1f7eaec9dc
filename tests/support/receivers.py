"""Receivers of webhooks as they come: good, slow, hostile; and daemons that tell them."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from standardwebhooks import Webhook as Verifier

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 -- of tests
PATIENCE_S: Final = 20.0


def until(is_so: Callable[[], object], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Request:
    """What arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    time_s: float

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        read: dict[str, Any] = json.loads(self.body)
        return read

    @property
    def name(self) -> str:
        """Its type."""
        return str(self.event["type"])

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The event, verified as a receiver would, with the Standard Webhooks' own library."""
        read: dict[str, Any] = Verifier(secret).verify(self.body, dict(self.headers))
        return read


@dataclass
class Reply:
    """What a receiver answers, and how slowly."""

    status: int = 204
    headers: Mapping[str, str] | None = None
    after_s: float = 0.0
    raw: bytes | None = None
    drip_s: float = 0.0


class Hook:
    """A receiver on a port of its own.

    Args:
        reply: What it answers; a function of the request, or always the same.
        port: Where; 0: anywhere.
        tls: Certificate and key.
    """

    def __init__(
        self,
        reply: Reply | Callable[[Request], Reply] | None = None,
        *,
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.reply = reply or Reply()
        self.requests: list[Request] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook._answer(self)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._scheme = "https" if tls else "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self._scheme}://127.0.0.1:{self.port}/hook"

    @property
    def events(self) -> list[dict[str, Any]]:
        """What arrived, in order."""
        return [one.event for one in self.requests]

    @property
    def names(self) -> list[str]:
        """The types of what arrived, without repeats of an id."""
        return [one["type"].removeprefix("bursar.") for one in self.unique]

    @property
    def unique(self) -> list[dict[str, Any]]:
        """What arrived, each id once, in the order in which it came first."""
        return list({one["id"]: one for one in reversed(self.events)}.values())[::-1]

    def saw(
        self, count: int, what: str = "", *, patience_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """Waits until so many events have arrived, each counted once."""
        enough = f"{count} events {what}"
        until(lambda: len(self.unique) >= count, enough, patience_s=patience_s)
        return self.unique

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        headers = {key.lower(): value for key, value in handler.headers.items()}
        request = Request(handler.path, headers, body, time.monotonic())
        self.requests.append(request)
        reply = self.reply(request) if callable(self.reply) else self.reply
        time.sleep(reply.after_s)
        if reply.raw is not None:
            for index in range(len(reply.raw)):
                handler.wfile.write(reply.raw[index : index + 1])
                handler.wfile.flush()
                time.sleep(reply.drip_s)
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for key, value in (reply.headers or {}).items():
            handler.send_header(key, value)
        handler.end_headers()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def webhook(folder: Path, hook: Hook | str, name: str = "hook", **about: Any) -> dict[str, Any]:
    """A row of `[[notify.webhooks]]`, with its secret in a file."""
    secret = folder / f"{name}.secret"
    secret.write_text(SECRET + "\n", encoding="ascii")
    url = hook if isinstance(hook, str) else hook.url
    return {"name": name, "url": url, "secret_file": str(secret), **about}
