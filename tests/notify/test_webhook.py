"""One attempt at receivers of every kind: what it comes to, within its time, to nowhere else."""

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from support.certificates import Authority
from support.receivers import SECRET, Hook, Reply

from bursar.notify.events import Selection, Waiting, expand
from bursar.notify.outcomes import Answer, Outcome
from bursar.notify.webhook import Secret, SecretError, Webhook, sign

SECRET_2 = "whsec_" + "QUJD" * 10
WAITING = Waiting(7, "id-7", "freeze", "acme", b'{"a": 1}')
EVERYTHING = Selection(expand(["*"]), ("**",))


def webhook(url: str, folder: Path, *, timeout_s: float = 10, **about: Any) -> Webhook:
    secret = folder / "secret"
    secret.write_text(about.pop("secret", SECRET), encoding="ascii")
    return Webhook("hook", url, Secret(str(secret)), EVERYTHING, timeout_s, **about)


def told(url: str, folder: Path, **about: Any) -> Outcome:
    return webhook(url, folder, **about).deliver(WAITING, threading.Event())


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, Answer.TAKEN),
        (204, Answer.TAKEN),
        (400, Answer.REFUSED),
        (413, Answer.REFUSED),
        (422, Answer.REFUSED),
        (401, Answer.AWAY),
        (404, Answer.AWAY),
        (408, Answer.AWAY),
        (410, Answer.GONE),
        (429, Answer.AWAY),
        (500, Answer.AWAY),
        (503, Answer.AWAY),
    ],
)
def test_each_status_means_what_it_should(tmp_path: Path, status: int, answer: Answer) -> None:
    with Hook(Reply(status)) as hook:
        outcome = told(hook.url, tmp_path)
    assert outcome.answer is answer
    assert str(status) in outcome.detail


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with Hook() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with Hook(Reply(status, {"location": elsewhere.url})) as hook:
                outcome = told(hook.url, tmp_path)
            assert outcome.answer is Answer.AWAY
            assert "redirects are not followed" in outcome.detail
        assert elsewhere.requests == []


def test_no_proxy_of_the_environment_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hook() as hook, Hook() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert told(hook.url, tmp_path).answer is Answer.TAKEN
        assert (len(hook.requests), len(proxy.requests)) == (1, 0)


@pytest.mark.parametrize(
    ("text", "least_s", "most_s"),
    [("7", 7, 7), ("0", 0, 0), ("soon", 0, 0), ("-5", 0, 0), ("9" * 400, 1e8, 1e9), ("", 0, 0)],
)
def test_retry_after_is_read(tmp_path: Path, text: str, least_s: float, most_s: float) -> None:
    with Hook(Reply(503, {"retry-after": text})) as hook:
        assert least_s <= told(hook.url, tmp_path).retry_after_s <= most_s


def test_retry_after_may_be_a_date(tmp_path: Path) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    with Hook(Reply(503, {"retry-after": date})) as hook:
        assert 60 < told(hook.url, tmp_path).retry_after_s <= 100


@contextmanager
def speaking(says: bytes, *, pause_s: float = 0, then_waits: bool = False) -> Iterator[str]:
    """Answers every connection with bytes, one at a time, whatever it is asked."""
    stop = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                for index in range(len(says)):
                    connection.sendall(says[index : index + 1])
                    if stop.wait(pause_s):
                        return
                if then_waits:
                    stop.wait(60)
                # To close with something unread would take back what was said.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                while connection.recv(65_536):
                    pass
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


HANGING = [
    pytest.param(b"", 0, id="says nothing"),
    pytest.param(b"HTTP/1.1 200 OK\r\n", 0, id="stops in its headers"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 200, 0.01, id="always goes on"),
    pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000, 0.05, id="drips"),
    pytest.param(b"HTTP/1.1 500 No\r\n\r\n" + b"z" * 1_000, 0.05, id="drips its text"),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("says", "pause_s"), HANGING)
def test_no_receiver_holds_longer_than_the_timeout(
    tmp_path: Path, scheme: str, says: bytes, pause_s: float
) -> None:
    with speaking(says, pause_s=pause_s, then_waits=True) as address:
        began_s = time.monotonic()
        outcome = told(f"{scheme}://{address}/", tmp_path, timeout_s=1)
        took_s = time.monotonic() - began_s
    assert outcome.answer is Answer.AWAY
    assert took_s < 3


@pytest.mark.parametrize(
    "says",
    [
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 999999 what\r\n\r\n",
        b"HTTP/1.1 200\r\n" + b"x: y\r\n" * 1_000,
        b"HTTP/1.1 " + b"2" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
)
def test_garbage_is_no_answer_and_no_crash(tmp_path: Path, says: bytes) -> None:
    with speaking(says) as address:
        outcome = told(f"http://{address}/", tmp_path, timeout_s=5)
    assert outcome.answer is (Answer.TAKEN if says.startswith(b"HTTP/1.1 200 OK") else Answer.AWAY)
    assert outcome.detail.startswith(("no answer: ", "answered ", "no whole answer"))
    assert len(outcome.detail) < 400


def test_of_a_long_text_only_the_beginning_is_read(tmp_path: Path) -> None:
    with speaking(b"HTTP/1.1 500 No\r\n\r\n" + b"n" * 5_000) as address:
        outcome = told(f"http://{address}/", tmp_path)
    assert outcome.detail == f"answered 500: {'n' * 200}"


def test_a_certificate_of_ones_own_authority_is_trusted_if_configured(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    pair = authority.issue("server", addresses=["127.0.0.1"], server=True)
    wrong = authority.issue("wrong", dns=["elsewhere.example"], server=True)
    old = authority.issue("old", addresses=["127.0.0.1"], server=True, days=-1)
    ca_file = str(authority.path)
    with Hook(tls=(pair.certificate, pair.key)) as hook:
        assert told(hook.url, tmp_path, ca_file=ca_file).answer is Answer.TAKEN
        for untrusting in (None, str(other.path)):
            outcome = told(hook.url, tmp_path, ca_file=untrusting)
            assert outcome.answer is Answer.AWAY
            assert "its certificate is not trusted" in outcome.detail
        assert len(hook.requests) == 1
        # An authority that is exchanged counts from the next attempt on.
        changed = tmp_path / "changed.crt"
        changed.write_bytes(other.path.read_bytes())
        receiver = webhook(hook.url, tmp_path, ca_file=str(changed))
        assert receiver.deliver(WAITING, threading.Event()).answer is Answer.AWAY
        changed.write_bytes(authority.path.read_bytes())
        os.utime(changed, (1, 1))
        assert receiver.deliver(WAITING, threading.Event()).answer is Answer.TAKEN
    for bad in (wrong, old):
        with Hook(tls=(bad.certificate, bad.key)) as hook:
            outcome = told(hook.url, tmp_path, ca_file=ca_file)
            assert "its certificate is not trusted" in outcome.detail
            assert hook.requests == []


def test_what_is_signed_verifies_and_what_is_changed_does_not(tmp_path: Path) -> None:
    with Hook() as hook:
        assert told(hook.url + "?key=1", tmp_path).answer is Answer.TAKEN
    [request] = hook.requests
    assert request.path == "/hook?key=1"
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.verified() == {"a": 1}
    for body, headers in (
        (b'{"a": 2}', request.headers),
        (request.body, {**request.headers, "webhook-id": "id-8"}),
        (request.body, {**request.headers, "webhook-timestamp": str(int(time.time()) + 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Verifier(SECRET).verify(body, dict(headers))


def test_while_secrets_are_exchanged_both_sign(tmp_path: Path) -> None:
    with Hook() as hook:
        receiver = webhook(hook.url, tmp_path, secret=f"{SECRET}\n{SECRET_2}\n")
        assert receiver.deliver(WAITING, threading.Event()).answer is Answer.TAKEN
        (tmp_path / "secret").write_text(SECRET_2, encoding="ascii")
        assert receiver.deliver(WAITING, threading.Event()).answer is Answer.TAKEN
    first, second = hook.requests
    assert first.verified(SECRET) == first.verified(SECRET_2) == second.verified(SECRET_2)
    with pytest.raises(WebhookVerificationError):
        second.verified(SECRET)


def test_without_a_secret_nothing_is_sent(tmp_path: Path) -> None:
    with Hook() as hook:
        receiver = webhook(hook.url, tmp_path)
        (tmp_path / "secret").unlink()
        outcome = receiver.deliver(WAITING, threading.Event())
    assert outcome.answer is Answer.AWAY
    assert "cannot be read: No such file or directory" in outcome.detail
    assert hook.requests == []


@pytest.mark.parametrize(
    "content",
    ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_" + "A" * 400, "whsec_!!!!", SECRET + "x",
     f"{SECRET} " * 5, SECRET[6:]],
)  # fmt: skip
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_text(content, encoding="ascii")
    with pytest.raises(SecretError) as caught:
        Secret(str(tmp_path / "secret")).keys()
    assert 'write "whsec_" and the base64 of 24 to 64 random bytes' in str(caught.value)
    assert content.strip() not in str(caught.value) or len(content.strip()) < 8


def test_signing_is_that_of_the_standards_own_example() -> None:
    """The vector is that of the tests of the standard's libraries."""
    event_id, timestamp, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    headers = sign([key], event_id, timestamp, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
