"""The dashboard by HTTP (B1 to B8): what it answers to whom, and what it refuses."""

import gzip
import json
import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import pytest
from support.certificates import Authority
from support.daemon import Daemon
from support.dashboard import KEY, Asker, dashboard, url_of

from bursar import Client, EntryKind, Role, SidecarUnavailable, Threshold, Usage, Verdict
from bursar.daemon.config import Config, ConfigError

DAY_S: Final = 86_400.0
PAGE_BYTES_MAX: Final = 200_000
RATES: Final = {
    "models": [
        {"name": name, "input_nanos_per_million": 10**9, "output_nanos_per_million": 10**9}
        for name in ("small", "large")
    ]
}


@pytest.fixture(scope="module")
def opened() -> Iterator[Daemon]:
    with dashboard(rates=RATES) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    with dashboard(access={"mode": "enforce"}) as daemon:
        yield daemon


@pytest.fixture
def client(opened: Daemon) -> Iterator[Client]:
    with opened.client() as made:
        yield made


@pytest.fixture
def operator(guarded: Daemon) -> Iterator[Client]:
    with guarded.client() as made:
        yield made


def token(operator: Client, role: Role, account: str = "") -> str:
    return operator.tokens.create("t", role=role, account=account, ttl_s=DAY_S).secret


def limit_change(
    account: str, limit: int, before: int, *, kind: str = "total", unit: str = "tokens"
) -> dict[str, Any]:
    period = {"kind": kind, "time_zone": "UTC", "length_ms": 0}
    amounts = {"limit": str(limit), "before": str(before)}
    return {"account": account, "unit": unit, "period": period, **amounts}


def files_of(page: str) -> set[str]:
    return set(re.findall(r"/assets/[a-z.]+", page))


def test_the_whole_page_is_small_and_its_own(opened: Daemon) -> None:
    asker = Asker(url_of(opened))
    page = asker.get("/")
    texts = {"/": page.body.decode()}
    waiting = files_of(texts["/"])
    while waiting:
        path = waiting.pop()
        reply = asker.get(path)
        assert reply.status == 200, path
        texts[path] = reply.body.decode()
        imports = re.findall(r'from "\./([a-z]+\.js)"', texts[path])
        waiting |= {f"/assets/{name}" for name in imports} - set(texts)
    assert len(texts) > 10
    assert sum(len(text.encode()) for text in texts.values()) < PAGE_BYTES_MAX
    for path, text in texts.items():
        addresses = set(re.findall(r"https?://[^\"' )]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, f"{path} reaches elsewhere"
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, f"{path} reads markup"


def test_a_file_is_sent_again_only_when_it_has_changed(opened: Daemon) -> None:
    asker = Asker(url_of(opened))
    tag = str(asker.get("/assets/app.js").headers["etag"])
    again = asker.ask("GET", "/assets/app.js", headers={"if-none-match": tag})
    assert (again.status, again.body) == (304, b"")
    assert asker.ask("GET", "/assets/app.js", headers={"if-none-match": '"x"'}).status == 200


def test_who_takes_gzip_gets_it_and_who_does_not_does_not(opened: Daemon, client: Client) -> None:
    asker = Asker(url_of(opened))
    plain, packed = (asker.get("/assets/app.js", **{"accept-encoding": it}) for it in ("", "gzip"))
    assert plain.headers["content-encoding"] is None
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 2
    client.set_budget("packed", unit="tokens", limit=10)
    connection = asker.connect()
    connection.request("GET", "/api/live", headers={"accept-encoding": "gzip"})
    answer = connection.getresponse()
    assert answer.headers["content-encoding"] == "gzip"
    opener = zlib.decompressobj(wbits=31)
    seen = b""
    while b'{"ready":true}' not in seen:
        seen += opener.decompress(answer.read1())
    client.record("packed", tokens=7)
    while b'["tokens","total",10,0,7,' not in seen:
        seen += opener.decompress(answer.read1())
    connection.close()


def test_every_answer_tells_the_browser_what_the_page_may_not(opened: Daemon) -> None:
    asker = Asker(url_of(opened))
    for path in ("/", "/assets/app.js", "/api/me", "/nothing", "/api/account?account=x"):
        headers = asker.get(path).headers
        policy = str(headers["content-security-policy"])
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["access-control-allow-origin"] is None
    assert asker.get("/api/me").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/assets/app.js", "/api/me", "/api/live"])
def test_a_name_that_is_not_ours_reaches_nothing(opened: Daemon, path: str) -> None:
    asker = Asker(url_of(opened))
    for host in ("evil.example", "evil.example:7414", "localhost.evil.example", "10.0.0.1"):
        reply = asker.ask("GET", path, headers={"host": host})
        assert reply.status == 421, host
        assert "dashboard.hosts" in reply.json["error"]["message"]


def test_a_configured_name_is_ours() -> None:
    with dashboard(in_memory=True, dashboard={"hosts": ["page.example"]}) as daemon:
        asker = Asker(url_of(daemon))
        assert asker.ask("GET", "/", headers={"host": "page.example"}).status == 200
        origin = {"host": "page.example", "origin": "https://page.example"}
        assert asker.post("/api/unfreeze", {"account": "acme"}, origin).status == 200
        assert asker.ask("GET", "/", headers={"host": "other.example"}).status == 421


def test_another_page_changes_nothing(opened: Daemon, client: Client) -> None:
    client.set_budget("csrf", unit="tokens", limit=5)
    asker = Asker(url_of(opened))
    own = urlsplit(asker.url).netloc
    body = json.dumps({"account": "csrf", "reason": "x"}).encode()
    json_type = {"content-type": "application/json"}
    for headers, status in [
        (json_type, 403),
        ({"content-type": "text/plain", KEY: "-"}, 415),
        (json_type | {KEY: "-", "origin": "http://evil.example"}, 403),
        (json_type | {KEY: "-", "origin": "null"}, 403),
        (json_type | {KEY: "-", "origin": "http://127.0.0.1:1"}, 403),
        (json_type | {KEY: "-", "sec-fetch-site": "cross-site"}, 403),
        (json_type | {KEY: "-", "sec-fetch-site": "same-site"}, 403),
    ]:
        assert asker.ask("POST", "/api/freeze", body, headers).status == status, headers
    assert not client.get_account("csrf").frozen
    # What a browser asks before it sends a header to another origin is answered by nobody.
    assert asker.ask("OPTIONS", "/api/freeze", headers={"origin": "http://x"}).status == 405
    headers = json_type | {KEY: "-", "origin": f"http://{own}", "sec-fetch-site": "same-origin"}
    assert asker.ask("POST", "/api/freeze", body, headers).status == 200
    assert client.get_account("csrf").frozen


def test_without_a_token_nothing_is_told_where_tokens_are_needed(guarded: Daemon) -> None:
    asker = Asker(url_of(guarded))
    assert asker.get("/").status == 200, "the page asks for the token"
    assert asker.get("/api/me").body == b"null", "nobody yet: the page asks who it is"
    for path in ("live", "account?account=a", "entries", "history?count=1&unit=tokens"):
        reply = asker.get(f"/api/{path}")
        assert (reply.status, reply.json["error"]["reason"]) == (401, "UNAUTHENTICATED"), path
    for path, body in [
        ("freeze", {"account": "a", "reason": ""}),
        ("unfreeze", {"account": "a"}),
        ("limit", limit_change("a", 1, 2)),
        ("session", {"token": "bursar_no_one"}),
        ("session", {}),
    ]:
        assert asker.post(f"/api/{path}", body).status == 401, path


def test_a_session_is_its_cookie_with_its_key_until_its_token_ends(
    guarded: Daemon, operator: Client
) -> None:
    made = operator.tokens.create("s", role=Role.OBSERVER, account="acme", ttl_s=DAY_S)
    asker = Asker(url_of(guarded))
    reply = asker.post("/api/session", {"token": f" {made.secret}\n"})
    cookie = str(reply.headers["set-cookie"])
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="))
    assert made.secret not in cookie
    shown = {"cookie": cookie.partition(";")[0], KEY: reply.json["key"]}
    me = asker.ask("GET", "/api/me", headers=shown)
    assert (me.status, me.json["role"], me.json["account"]) == (200, "observer", "acme")
    # A page on another port gets the cookie, and has no key.
    for part in ({"cookie": shown["cookie"]}, {KEY: shown[KEY]}, shown | {KEY: "0" * 64}):
        assert asker.ask("GET", "/api/entries", headers=part).status == 401
    other = asker.signed_in(made.secret)
    assert asker.post("/api/session/end", {}, shown).status == 200
    assert asker.ask("GET", "/api/me", headers=shown).status == 401
    assert other.get("/api/me").status == 200, "another session goes on"
    with other.watching() as watcher:
        watcher.until(lambda seen: seen.ready)
        operator.tokens.revoke(made.token.id)
        watcher.until(lambda seen: seen.ended is not None)
        assert not watcher.read()
    assert other.get("/api/me").status == 401


def test_a_token_counts_by_itself_for_scripts(guarded: Daemon, operator: Client) -> None:
    secret = token(operator, Role.OPERATOR)
    asker = Asker(url_of(guarded), {"authorization": f"Bearer {secret}"})
    assert asker.get("/api/me").json["role"] == "operator"
    assert asker.post("/api/freeze", {"account": "acme/z", "reason": ""}).status == 200


def test_who_only_reads_changes_nothing(guarded: Daemon, operator: Client) -> None:
    operator.set_budget("acme/a", unit="tokens", limit=10)
    operator.set_budget("acme/b", unit="tokens", limit=10)
    for role in (Role.OBSERVER, Role.AGENT):
        asker = Asker(url_of(guarded)).signed_in(token(operator, role))
        for path, body in [
            ("freeze", {"account": "acme/a", "reason": ""}),
            ("unfreeze", {"account": "acme/a"}),
            ("limit", limit_change("acme/a", 20, 10)),
        ]:
            reply = asker.post(f"/api/{path}", body)
            assert (reply.status, reply.json["error"]["reason"]) == (403, "NOT_ALLOWED")
    bound = Asker(url_of(guarded)).signed_in(token(operator, Role.OPERATOR, "acme/a"))
    assert bound.post("/api/limit", limit_change("acme/a", 20, 10)).status == 200
    assert bound.post("/api/limit", limit_change("acme/b", 20, 10)).status == 403
    for path in ("account", "entries", "history"):
        query = "account=acme%2Fb&unit=tokens&stretch=hour&by=model&count=1&time_zone=UTC"
        assert bound.get(f"/api/{path}?{query}").status == 403, path
    limits = {one.account: one.limit for one in operator.get_account("acme/b").balances}
    assert limits == {"acme/b": 10}


def test_a_change_is_as_by_grpc_and_noted_with_who_made_it(opened: Daemon, client: Client) -> None:
    warn = Threshold(permille=500, verdict=Verdict.WARN)
    client.set_budget("change/a", unit="tokens", limit=100, thresholds=[warn])
    asker = Asker(url_of(opened))
    assert asker.post("/api/limit", limit_change("change/a", 2**62, 100)).status == 200
    shown = asker.get("/api/account?account=change%2Fa").json
    assert shown["budgets"][0]["limit"] == str(2**62), "to the last digit"
    [balance] = client.get_account("change/a").balances
    assert balance.limit == 2**62
    client.record("change/a", tokens=2**61)
    crossings = list(client.list_entries("change/a", kinds=[EntryKind.CROSSING]))
    assert [entry.amount for entry in crossings] == [500], "the threshold is still there"
    late = asker.post("/api/limit", limit_change("change/a", 7, 100))
    assert late.status == 409
    assert str(2**62) in late.json["error"]["message"]
    assert asker.post("/api/freeze", {"account": "change/a", "reason": "why"}).status == 200
    assert client.get_account("change/a").freeze_reason == "why"
    assert asker.post("/api/unfreeze", {"account": "change/a"}).status == 200
    noted = [e.detail for e in client.list_entries("change/a", kinds=[EntryKind.OPERATED])]
    assert [detail.partition(": ")[2] for detail in noted[-3:]] == [
        f"set a limit of {2**62} tokens, period total; before: 100",
        "froze it: why",
        "ended its freeze",
    ]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("limit", [], "account"),
        ("limit", limit_change("change/x", 1, 1) | {"limit": 5}, "limit"),
        ("limit", limit_change("change/x", 1, 1) | {"limit": "1.5"}, "limit"),
        ("limit", limit_change("change/x", 1, 1) | {"limit": str(2**63)}, "limit"),
        ("limit", limit_change("change/x", 1, 1) | {"period": None}, "kind"),
        ("limit", limit_change("change/x", 1, 1, kind="fortnight"), "period.kind"),
        ("limit", limit_change("change/x", 1, 1, kind="day"), "no such budget"),
        ("limit", limit_change("change/x", -1, 1), "negative"),
        ("limit", limit_change("no such/x", 1, 1), "no such/x"),
        ("freeze", {"account": "change/x"}, "reason"),
        ("freeze", {"account": "change/x", "reason": "x" * 1000}, "reason"),
        ("freeze", {"account": "<b>", "reason": ""}, "<b>"),
    ],
)
def test_bad_input_is_told_what_is_wrong(
    opened: Daemon, client: Client, path: str, body: Any, told: str
) -> None:
    client.set_budget("change/x", unit="tokens", limit=1)
    reply = Asker(url_of(opened)).post(f"/api/{path}", body)
    assert reply.status in {400, 404}, reply.body
    assert told in reply.json["error"]["message"]


def test_bodies_and_methods_and_paths_are_bounded(opened: Daemon) -> None:
    asker = Asker(url_of(opened))
    headers = {"content-type": "application/json", KEY: "-"}
    assert asker.ask("POST", "/api/freeze", b"{" * 100_000, headers).status == 413
    assert asker.ask("POST", "/api/freeze", b"{", headers).status == 400
    assert asker.ask("PUT", "/api/freeze", b"{}", headers).status == 405
    for path in ("/api", "/api/nothing", "/assets/../assets/app.js", "/assets/", "/index.html"):
        assert asker.get(path).status == 404, path
    for query in ("account=%ff", "kind=nothing", "unit=x", "start_ms=now", "after=zz", "account=%"):
        assert asker.get(f"/api/entries?{query}").status == 400, query
    with pytest.raises((ConnectionError, ValueError)):
        asker.get("/" + "x" * 200_000).json  # noqa: B018 -- it is not answered


def test_entries_come_newest_first_page_by_page(opened: Daemon, client: Client) -> None:
    for number in range(230):
        client.record("paged/a", amounts={"tokens": number + 1})
    client.record("other", tokens=1)
    asker = Asker(url_of(opened))
    amounts, after, pages = [], "", 0
    while True:
        query = f"account=paged&kind=spend&unit=tokens&after={after}"
        page = asker.get(f"/api/entries?{query}").json
        amounts += [int(entry["amount"]) for entry in page["entries"]]
        pages, after = pages + 1, page["next"]
        if not after:
            break
    assert amounts == list(range(230, 0, -1))
    assert pages == 3
    one = asker.get("/api/entries?account=paged").json["entries"][0]
    found = asker.get(f"/api/entries?reservation={one['reservation']}").json["entries"]
    assert {entry["account"] for entry in found} == {"paged/a"}
    assert asker.get(f"/api/entries?account=paged&end_ms={one['time_ms'] - 10**7}").json == {
        "entries": [],
        "next": "",
    }


def test_history_is_the_sum_of_the_entries(opened: Daemon, client: Client) -> None:
    for account, model, count in [("sum/a", "small", 3), ("sum/b/c", "large", 5), ("sum", "", 2)]:
        for _ in range(count):
            if model:
                client.record(account, usage=Usage(model=model, input_tokens=7, output_tokens=2))
            else:
                client.record(account, tokens=1)
    held = client.reserve("sum/a", tokens=1_000)
    asker = Asker(url_of(opened))

    def lines(**params: str | int) -> dict[str, int]:
        usual = {"account": "sum", "unit": "tokens", "stretch": "hour", "by": "account", "count": 2}
        query = "&".join(f"{k}={quote(str(v))}" for k, v in (usual | params).items())
        chart = asker.get(f"/api/history?{query}&time_zone=Asia%2FKolkata").json
        assert chart["whole"] is True
        assert all(len(line["spent"]) == len(chart["start_ms"]) for line in chart["lines"])
        return {line["name"]: sum(line["spent"]) for line in chart["lines"]}

    assert lines() == {"sum/b": 45, "sum/a": 27, "sum": 2}
    assert lines(stretch="day", count=30) == lines()
    assert lines(by="model") == {"large": 45, "small": 27, "": 2}
    assert lines(account="sum/b") == {"sum/b/c": 45}
    assert lines(unit="usd_nanos", by="model")["large"] == 45_000
    held.release()
    for wrong in ("stretch=week", "by=x", "count=0", "count=1000", "time_zone=Mars", "unit=x"):
        query = {
            "unit": "tokens",
            "stretch": "day",
            "by": "model",
            "count": "1",
            "time_zone": "UTC",
        }
        query |= dict([wrong.split("=")])
        text = "&".join(f"{key}={value}" for key, value in query.items())
        assert asker.get(f"/api/history?{text}").status == 400, wrong


def test_who_watches_sees_changes_and_only_what_is_theirs(
    guarded: Daemon, operator: Client
) -> None:
    operator.set_budget("seen", unit="tokens", limit=1_000)
    operator.set_budget("seen/a", unit="tokens", limit=1_000)
    operator.set_budget("seen/ab", unit="tokens", limit=1_000)
    url = url_of(guarded)
    everything = Asker(url).signed_in(token(operator, Role.OBSERVER))
    bound = Asker(url).signed_in(token(operator, Role.AGENT, "seen/a"))
    with everything.watching() as one, bound.watching() as other:
        one.until(lambda seen: seen.ready and ("account", "seen/ab") in seen.rows)
        other.until(lambda seen: seen.ready and ("account", "seen/a") in seen.rows)
        assert other.keys("account") == {"seen/a"}
        held = operator.reserve("seen/ab", tokens=50)
        mine = operator.reserve("seen/a", tokens=40, labels={"model": "<b>"})
        started = time.monotonic()
        one.until(lambda seen: {held.id, mine.id} <= seen.keys("reservation"))
        assert time.monotonic() - started < 5
        other.until(lambda seen: mine.id in seen.keys("reservation"))
        row = other.rows["reservation", mine.id]
        assert (row["account"], row["granted"], row["by"]) == ("seen/a", [["tokens", 40]], "calls")
        mine.commit(tokens=30)
        held.release()
        one.until(lambda seen: not {held.id, mine.id} & seen.keys("reservation"))
        other.until(lambda seen: seen.rows["account", "seen/a"]["budgets"][0][4] == 30)
        assert one.rows["account", "seen"]["budgets"][0][2:5] == [1_000, 0, 30]
        other.until(lambda seen: not seen.keys("reservation"))
        assert other.keys("account") == {"seen/a"}


def test_rates_are_told_to_who_goes_on_watching(opened: Daemon, client: Client) -> None:
    client.set_budget("fast", unit="tokens", limit=10**9)
    with Asker(url_of(opened)).watching() as watcher:
        started = time.monotonic()
        while (spent := time.monotonic() - started) < 8:
            client.record("fast", tokens=100)
            time.sleep(0.05)
        total = client.get_account("fast").balances[0].spent
        watcher.until(lambda seen: ("account", "fast") in seen.rows)
        watcher.until(lambda seen: seen.rows["account", "fast"]["budgets"][0][4] == total)
        rate = watcher.rows["account", "fast"]["budgets"][0][8]
        assert total / spent / 3 < rate < total / spent * 3


def test_connections_and_watchers_are_bounded() -> None:
    with dashboard(in_memory=True, dashboard={"max_connections": 4}) as daemon:
        asker = Asker(url_of(daemon))
        with ExitStack() as stack:
            for _ in range(2):
                watcher = stack.enter_context(asker.watching())
                watcher.until(lambda seen: seen.ready)
            refused = asker.get("/api/live")
            assert refused.status == 503
            assert "max_connections" in refused.json["error"]["message"]
            assert asker.get("/api/me").status == 200, "a call finds a place"
            parts = urlsplit(asker.url)
            place = (str(parts.hostname), int(parts.port or 0))
            for _ in range(6):  # as many as there are places, and more
                stack.enter_context(socket.create_connection(place))
                time.sleep(0.1)
            with pytest.raises(ConnectionError):
                asker.get("/api/me")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with asker.watching() as again:
                    again.until(lambda seen: seen.ready)
                    return
            except (ConnectionError, AssertionError):
                time.sleep(0.05)
        pytest.fail("no place became free")


def test_the_drain_ends_who_watches() -> None:
    with dashboard(in_memory=True) as daemon, Asker(url_of(daemon)).watching() as watcher:
        watcher.until(lambda seen: seen.ready)
        started = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - started < 5
        while watcher.read():
            pass


def test_elsewhere_takes_tls_and_tokens(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", dns=["localhost"], server=True)
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    everywhere = {"listen": "0.0.0.0:0"}
    for config in (
        {"dashboard": everywhere},
        {"dashboard": everywhere | {"tls": True}, "server": {"tls": tls}},
        {"dashboard": everywhere, "access": {"mode": "enforce"}},
        {"dashboard": {"listen": "127.0.0.1:0", "tls": True}},
    ):
        with pytest.raises(ConfigError, match="dashboard"):
            Config.from_dict(config)
        with pytest.raises(SidecarUnavailable, match="dashboard"), Daemon(**config):
            pass
    with dashboard(
        tls=True, dashboard={"listen": "0.0.0.0:0"}, server={"tls": tls}, access={"mode": "enforce"}
    ) as daemon:
        context = ssl.create_default_context(cafile=str(authority.path))
        url = f"https://localhost:{urlsplit(url_of(daemon)).port}"
        asker = Asker(url, tls=context)
        with daemon.client() as client:
            secret = token(client, Role.OBSERVER)
        reply = asker.post("/api/session", {"token": secret})
        cookie = str(reply.headers["set-cookie"])
        assert cookie.startswith("__Host-bursar=")
        assert cookie.endswith("; Secure")
        signed_in = asker.signed_in(secret)
        assert signed_in.get("/api/me").json["role"] == "observer"
        assert signed_in.post("/api/session/end", {}, {"origin": "http://localhost"}).status == 403
