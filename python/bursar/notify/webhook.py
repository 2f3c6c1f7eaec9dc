"""A receiver by HTTP: one signed POST for each event, as the Standard Webhooks have it.

`http.client` does it: one request on a connection of its own, to the address that is configured
and nowhere else. It follows no redirect and knows no proxy or cookie; the retries that a larger
client brings are the spool's to make, for they have to outlive the process.
"""

import base64
import binascii
import contextlib
import email.utils
import functools
import hashlib
import hmac
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from bursar._core import version
from bursar.notify.events import Selection, Waiting
from bursar.notify.outcomes import Answer, Outcome

__all__ = ["Secret", "SecretError", "Webhook", "check_ca", "sign"]

PREFIX: Final = "whsec_"
SECRETS_MAX: Final = 4
"""How many secrets sign at once, while they are exchanged."""

_SECRET_BYTES: Final = (24, 64)
_FILE_BYTES_MAX: Final = 4_096
_ANSWER_BYTES_MAX: Final = 1_024  # how much of an answer is read; it is for a person
_SHOWN_CHARACTERS: Final = 200
_OK: Final = range(200, 300)
_REDIRECT: Final = range(300, 400)
_CLIENT_ERROR: Final = range(400, 500)
# These are about the receiver, or about now, and not about the event.
_LATER: Final = frozenset({401, 403, 404, 405, 407, 408, 421, 423, 425, 429})


class SecretError(Exception):
    """There is no secret to sign with; says why, and never what was found."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where the secrets are: read anew for each attempt, so that they can be exchanged.

    Attributes:
        file: A file of one secret a line.
        variable: An environment variable of one or more, with spaces between them.
    """

    file: str | None = None
    variable: str | None = None

    def keys(self) -> list[bytes]:
        """The keys, in the order in which they are written. Raises SecretError."""
        where = self.file or f"the environment variable {self.variable}"
        if self.file is None:
            text = os.environ.get(self.variable or "", "")
        else:
            try:
                with Path(self.file).open(encoding="ascii") as file:
                    text = file.read(_FILE_BYTES_MAX + 1)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise SecretError(f"{where} cannot be read: {reason}") from None
        words = text.split() if len(text) <= _FILE_BYTES_MAX else []
        if not 1 <= len(words) <= SECRETS_MAX:
            raise SecretError(f"{where} has no secret, or more than {SECRETS_MAX}; {_RIGHT}")
        return [_key(word, where) for word in words]


_RIGHT: Final = (
    f'write "{PREFIX}" and the base64 of 24 to 64 random bytes, as does '
    f"printf '{PREFIX}%s\\n' \"$(openssl rand -base64 32)\""
)


def _key(word: str, where: str) -> bytes:
    try:
        key = base64.b64decode(word.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    shortest, longest = _SECRET_BYTES
    if not word.startswith(PREFIX) or not shortest <= len(key) <= longest:
        raise SecretError(f"{where} has a secret that is none; {_RIGHT}")
    return key


def sign(keys: list[bytes], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of the Standard Webhooks; with several keys each signs."""
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    digests = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in digests),
    }


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver by HTTP.

    Attributes:
        name: What messages call it; they never name its address, which may be a secret itself.
        url: Its address.
        secret: What its events are signed with.
        selection: What it wants.
        timeout_s: How long one attempt may take in all.
        ca_file: The authorities that are trusted; None: those of the system.
    """

    name: str
    url: str
    secret: Secret
    selection: Selection
    timeout_s: float
    ca_file: str | None = None

    kind = "webhook"

    @property
    def address(self) -> str:
        """A hash of the address."""
        return hashlib.sha256(self.url.encode()).hexdigest()

    def wants(self, name: str, account: str) -> bool:
        """Whether it is told of an event."""
        return self.selection.wants(name, account)

    def deliver(self, waiting: Waiting, stop: threading.Event) -> Outcome:
        """Sends an event once and says what came of it."""
        del stop  # it ends within its timeout; until then an answer saves a repeat
        try:
            headers = sign(self.secret.keys(), waiting.id, int(time.time()), waiting.body)
            status, text, retry_after = self._post(waiting.body, headers)
        except SecretError as error:
            return Outcome(Answer.AWAY, f"not signed: {error}")
        except TimeoutError:
            return Outcome(Answer.AWAY, f"no whole answer within {self.timeout_s:g} s")
        except ssl.SSLCertVerificationError as error:
            return Outcome(Answer.AWAY, f"its certificate is not trusted: {error.verify_message}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Outcome(Answer.AWAY, f"no answer: {reason[:_SHOWN_CHARACTERS]}")
        detail = f"answered {status}"
        if status in _REDIRECT:
            detail += ", and redirects are not followed: configure the address that it leads to"
        elif text and status not in _OK:
            detail += f": {text}"
        return Outcome(_answer(status), detail, _pause_s(retry_after))

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, str]:
        """Sends one request; its status, the beginning of its text, and Retry-After."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with _Deadline(self.timeout_s) as deadline:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            sock = _connected(host, port, deadline)
            if parts.scheme == "https":
                context = _context(self.ca_file, _changed_ns(self.ca_file))
                tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                sock = deadline.guard(tls)
                tls.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            own = {
                "host": parts.netloc,
                "content-type": "application/cloudevents+json; charset=utf-8",
                "user-agent": f"bursar/{version}",
                "connection": "close",
            }
            connection.request("POST", target, body, {**own, **headers})
            with connection.getresponse() as response:
                deadline.check()  # else what it ended would pass for the end of the headers
                raw = b""
                if response.status not in _OK:  # else nobody waits for what it may say
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        raw = response.read(_ANSWER_BYTES_MAX)
                text = raw.decode("utf-8", "replace").strip()[:_SHOWN_CHARACTERS]
                return response.status, text, response.headers.get("retry-after", "")


def _connected(host: str, port: int, deadline: "_Deadline") -> socket.socket:
    """A connection to the first address that takes one."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = deadline.guard(socket.socket(family, kind, protocol))
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure or OSError(f"{host} has no address")


@functools.lru_cache(maxsize=32)
def _context(ca_file: str | None, changed_ns: int) -> ssl.SSLContext:
    """What trusts the authorities of a file as it was then; None: those of the system."""
    del changed_ns
    return ssl.create_default_context(cafile=ca_file)


def check_ca(ca_file: str | None) -> None:
    """Raises OSError where the authorities cannot be read."""
    _context(ca_file, _changed_ns(ca_file))


def _changed_ns(ca_file: str | None) -> int:
    return 0 if ca_file is None else Path(ca_file).stat().st_mtime_ns


class _Deadline:
    """Ends whatever a socket waits for when the time is over: no drip of bytes prolongs it."""

    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._over = False

    @property
    def left_s(self) -> float:
        return max(self._end_s - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raises TimeoutError once the time is over."""
        if self._over:
            raise TimeoutError

    def guard(self, sock: socket.socket) -> socket.socket:
        """From now on it is this socket that ends."""
        with self._lock:
            self._sock = sock
            if self._over:
                sock.close()
                raise TimeoutError
        sock.settimeout(self.left_s)
        return sock

    def _expire(self) -> None:
        with self._lock:
            self._over = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    # The kernel's end alone: TLS's own would be in use by the other thread.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._sock is not None:
                self._sock.close()
            over, self._sock = self._over, None
        if over and isinstance(error, Exception) and not isinstance(error, TimeoutError):
            raise TimeoutError from None


def _answer(status: int) -> Answer:
    if status in _OK:
        return Answer.TAKEN
    if status == http.client.GONE:
        return Answer.GONE
    return Answer.REFUSED if status in _CLIENT_ERROR and status not in _LATER else Answer.AWAY


def _pause_s(retry_after: str, now: Callable[[], float] = time.time) -> float:
    """Reads Retry-After, in seconds or as a date; 0 for what is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - now(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
