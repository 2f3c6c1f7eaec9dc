"""The endpoint: formats, who may ask, and what it lives through."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from support.certificates import Authority
from support.promtool import promtool
from support.scraped import OPEN_METRICS, TEXT, Scraped

from bursar import Role

MAX_CONNECTIONS: Final = 32
PATIENCE_S: Final = 10


@pytest.fixture(scope="module")
def daemon() -> Iterator[Scraped]:
    with Scraped(in_memory=True, watchdog={"mode": "observe"}) as daemon:
        with daemon.client() as client:
            client.set_budget("acme", unit="tokens", limit=10)
            client.record("acme", tokens=3)
        yield daemon


def test_both_formats_are_read_by_their_parsers_and_say_the_same(daemon: Scraped) -> None:
    moving = re.compile(r"bursar_(gpu_sample_age|pump|store|connections)")
    pages = [daemon.scrape(OPEN_METRICS), daemon.scrape(TEXT)]
    assert [page.headers["content-type"] for page in pages] == [OPEN_METRICS, TEXT]
    assert pages[0].text.endswith("\n# EOF\n")
    assert "EOF" not in pages[1].text
    kept = [
        {key: value for key, value in page.samples().items() if not moving.match(key[0])}
        for page in pages
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) > 300


def test_what_prometheus_sends_gets_open_metrics_and_a_browser_text(daemon: Scraped) -> None:
    sent = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    )
    assert daemon.scrape(sent).headers["content-type"] == OPEN_METRICS
    assert daemon.scrape("text/html,*/*;q=0.8").headers["content-type"] == TEXT


def test_promtool_reads_a_page(daemon: Scraped) -> None:
    """Its style is another matter: base units such as gpu_ms are what the ledger counts in."""
    ran = promtool("check", "metrics", given=daemon.scrape(TEXT).text)
    assert ran.returncode in {0, 3}, ran.stderr  # 3: read, and something about style
    assert "error while linting" not in ran.stderr


def test_each_counter_has_a_type_and_a_sentence(daemon: Scraped) -> None:
    text = daemon.scrape(TEXT).text
    families = re.findall(r"# TYPE (\S+) (\S+)", text)
    helped = dict(re.findall(r"# HELP (\S+) (.+)", text))
    assert len(families) == len(set(families)) > 40
    for name, kind in families:
        assert helped[name].endswith((".", ")")), name
        assert name.endswith("_total") == (kind == "counter"), name


def test_the_watchdog_is_on_the_page_and_says_whether_it_sees(daemon: Scraped) -> None:
    page = daemon.scrape()
    assert page.value("bursar_watchdog_answers") == 1
    states = [
        value for (name, _), value in page.samples().items() if name == "bursar_gpu_watchdog_state"
    ]
    assert sum(states) == 1
    assert page.value("bursar_gpu_jobs") == 0
    assert page.value("bursar_gpu_incidents_open", state="breach") == 0


def test_other_paths_and_methods_are_refused(daemon: Scraped) -> None:
    assert daemon.scrape(path="/").status == 404
    assert daemon.scrape(path="/metrics/x").status == 404
    assert daemon.scrape(path="/metrics?name[]=x").status == 200
    for method in ("POST", "DELETE", "OPTIONS"):
        answer = daemon.scrape(method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    head = daemon.scrape(method="HEAD")
    assert (head.status, head.text) == (200, "")


def test_without_an_address_there_is_no_endpoint() -> None:
    with Scraped(metrics={"listen": ""}, in_memory=True) as daemon:
        assert "metrics on" not in daemon.log


def test_who_may_read_of_the_whole_daemon_may_scrape_and_nobody_else() -> None:
    with Scraped(access={"mode": "enforce"}) as daemon, daemon.client() as operator:
        operator.set_budget("acme", unit="tokens", limit=10)

        def answer(role: Role, account: str = "") -> int:
            made = operator.tokens.create("test", role=role, account=account, ttl_s=60)
            return daemon.scrape(token=made.secret).status

        assert answer(Role.OBSERVER) == 200
        assert answer(Role.OPERATOR) == 200
        assert answer(Role.AGENT) == 403
        assert answer(Role.AGENT, "acme") == 403
        # The page tells of accounts that these have no say over.
        assert answer(Role.OBSERVER, "acme") == 403
        assert answer(Role.OPERATOR, "acme") == 403
        nobody = daemon.scrape()
        assert (nobody.status, nobody.headers["www-authenticate"]) == (401, "Bearer")
        assert "bursar_" not in nobody.text.replace("Bearer bursar_…", "")
        made = operator.tokens.create("test", role=Role.OBSERVER, ttl_s=60)
        assert daemon.scrape(token=made.secret[:-1]).status == 401
        assert daemon.scrape(token=made.secret).status == 200
        operator.tokens.revoke(made.token.id)
        assert daemon.scrape(token=made.secret).status == 401


def test_where_all_may_call_an_agent_s_token_is_an_agent_s_all_the_same(daemon: Scraped) -> None:
    with daemon.client() as operator:
        made = operator.tokens.create("test", role=Role.AGENT, ttl_s=60)
    assert daemon.scrape().status == 200
    assert daemon.scrape(token=made.secret).status == 403


def test_with_tls_it_is_served_in_tls_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", addresses=["127.0.0.1"], server=True)
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    with Scraped(metrics={"tls": True}, server={"tls": tls}, in_memory=True) as daemon:
        assert daemon.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(authority.path))
        answer = httpx.get(daemon.url, verify=trusting)
        assert "bursar_build_info" in answer.text
        with pytest.raises(httpx.HTTPError):
            httpx.get(daemon.url.replace("https", "http"))


def raw(daemon: Scraped, sent: bytes) -> bytes:
    """What comes back for these bytes until the connection ends."""
    with socket.create_connection(daemon.address, timeout=PATIENCE_S * 3) as connection:
        received = b""
        try:
            connection.sendall(sent)
            while part := connection.recv(65_536):
                received += part
        except ConnectionError:
            pass  # closed while it was still being written to
        return received


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"4"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"4"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b""),
    ],
    ids=["header", "headers", "path", "tls", "version"],
)
def test_a_head_that_is_none_or_too_long_ends_its_connection(
    daemon: Scraped, sent: bytes, status: bytes
) -> None:
    answer = raw(daemon, sent)
    assert not answer or answer.startswith(b"HTTP/1.1 " + status), answer[:100]
    assert b"bursar_build_info" not in answer
    assert daemon.scrape().status == 200


def test_a_client_that_sends_slowly_or_reads_nothing_is_let_go_of(daemon: Scraped) -> None:
    """Both at once; meanwhile others are served."""
    slow = socket.create_connection(daemon.address)
    slow.sendall(b"GET /metrics HTTP/1.1\r\n")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(daemon.address)
    deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
    with slow, deaf:
        assert daemon.scrape().value("bursar_connections", listener="metrics") == 3
        deadline = time.monotonic() + 3 * PATIENCE_S
        while daemon.scrape().value("bursar_connections", listener="metrics") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_one_connection_too_many_is_closed_at_once_and_counted(daemon: Scraped) -> None:
    turned_away = {"listener": "metrics"}
    name = "bursar_connections_turned_away_total"
    before = daemon.scrape().value(name, **turned_away)
    assert before is not None
    held = [socket.create_connection(daemon.address) for _ in range(MAX_CONNECTIONS)]
    try:
        time.sleep(0.2)
        with socket.create_connection(daemon.address, timeout=5) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for one in held:
            one.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            after = daemon.scrape().value(name, **turned_away)
            break
        except OSError:  # the places are given back one by one
            assert time.monotonic() < deadline
    assert after is not None
    assert after >= before + 1


def descriptors(daemon: Scraped) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


@pytest.mark.timeout(300)
def test_ten_thousand_scrapes_leave_nothing_behind() -> None:
    """On one connection, and on new ones: no descriptor and no memory stays."""
    with Scraped(in_memory=True) as daemon:
        with daemon.client() as client:
            for number in range(20):
                client.set_budget(f"acme/{number}", unit="tokens", limit=10)
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

        def rounds(count: int) -> None:
            with socket.create_connection(daemon.address, timeout=30) as connection:
                reader = connection.makefile("rb")
                for _ in range(count):
                    connection.sendall(request)
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += reader.readline()
                    found = re.search(rb"content-length: (\d+)", head)
                    assert found is not None
                    assert len(reader.read(int(found[1]))) == int(found[1])

        rounds(500)
        before = descriptors(daemon), daemon.rss_bytes()
        rounds(9_500)
        for _ in range(500):
            assert daemon.scrape().status == 200
        deadline = time.monotonic() + 5
        while descriptors(daemon) > before[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert daemon.rss_bytes() < before[1] + 16 * 2**20


def test_a_drain_ends_with_a_scraper_connected() -> None:
    with Scraped(in_memory=True) as daemon:
        with socket.create_connection(daemon.address) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            assert daemon.terminate() == 0
        assert time.monotonic() - began < PATIENCE_S
