"""TLS by TCP and through the proxy: who is known by a certificate, what is never in the clear."""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from support.certificates import Authority, Pair
from support.daemon import Daemon

import bursar
from bursar import Client, Role, Tls

PATIENCE_S: Final = 15
SPIFFE: Final = "spiffe://acme.example/agent-7"
ROWS: Final = [
    {"uri": SPIFFE, "role": "agent", "account": "acme/a"},
    {"dns": "watch.acme.example", "role": "observer"},
    {"common_name": "ops", "role": "operator", "account": "acme"},
]


class World:
    """A daemon with TLS, and the authorities around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = Authority(folder, "servers")
        self.clients = Authority(folder, "clients")
        self.server = self.serve_as("127.0.0.1")
        self.ca = folder / "client_ca.crt"
        self.ca.write_bytes(self.clients.path.read_bytes())

    def serve_as(self, address: str) -> Pair:
        return self.servers.issue(
            "server", dns=["localhost"], addresses=[address], common_name="sidecar", server=True
        )

    def section(self) -> dict[str, str]:
        return {
            "certificate": str(self.server.certificate),
            "key": str(self.server.key),
            "client_ca": str(self.ca),
        }

    def daemon(self, **more: Any) -> Daemon:
        server = {"tcp": "127.0.0.1:0", "tls": self.section()}
        access = {"mode": "enforce", "certificate": ROWS}
        return Daemon(server=server, access=access, **more)

    def tls(self, pair: Pair | None = None) -> Tls:
        return Tls(
            ca=self.servers.path,
            certificate=pair.certificate if pair else None,
            key=pair.key if pair else None,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    with world.daemon() as made:
        with made.client() as operator:
            operator.set_budget("acme", unit="tokens", limit=1_000_000)
        yield made


def tcp_target(daemon: Daemon) -> str:
    return str(re.findall(r"127\.0\.0\.1:\d+", daemon.log.rpartition("listening on")[2])[0])


def connect(daemon: Daemon, tls: Tls | None, token: str | None = None) -> Client:
    return bursar.connect(tcp_target(daemon), tls=tls, token=token, attempts=1)


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"uris": [SPIFFE]}, (SPIFFE, Role.AGENT, "acme/a")),
        ({"uris": ["spiffe://b", SPIFFE], "common_name": "x"}, (SPIFFE, Role.AGENT, "acme/a")),
        ({"dns": ["watch.acme.example"]}, ("watch.acme.example", Role.OBSERVER, "")),
        ({"common_name": "ops"}, ("ops", Role.OPERATOR, "acme")),
    ],
)
def test_a_certificate_says_who_calls(
    world: World, daemon: Daemon, names: dict[str, Any], said: tuple[str, Role, str]
) -> None:
    name, role, account = said
    with connect(daemon, world.tls(world.clients.issue("client", **names))) as client:
        principal = client.who_am_i()
        assert (principal.name, principal.role, principal.account) == (
            f"certificate {name}", role, account,
        )  # fmt: skip
        assert principal.expire_time is not None
        if role is Role.AGENT:
            client.record("acme/a/x", tokens=1)
            with pytest.raises(bursar.NotAllowed):
                client.record("acme/b", tokens=1)
            with pytest.raises(bursar.NotAllowed):
                client.set_budget("acme/a", unit="tokens", limit=5)


@pytest.mark.parametrize(
    "names",
    [
        {"common_name": SPIFFE},
        {"common_name": "watch.acme.example"},
        {"dns": ["ops"]},
        {"uris": [f"{SPIFFE}/x"]},
        {"uris": [SPIFFE.upper()]},
        {"dns": ["*.acme.example"]},
        {"common_name": "Ops"},
    ],
)
def test_a_name_counts_exactly_and_only_where_it_stands(
    world: World, daemon: Daemon, names: dict[str, Any]
) -> None:
    pair = world.clients.issue("client", **names)
    with (
        connect(daemon, world.tls(pair)) as client,
        pytest.raises(bursar.Unauthenticated, match="is nobody's here"),
    ):
        client.who_am_i()


def test_a_token_by_tls_counts_with_a_certificate_and_without(world: World, daemon: Daemon) -> None:
    with daemon.client() as operator:
        made = operator.tokens.create("remote", role=Role.AGENT, account="acme/b", ttl_s=60)
    for pair in (None, world.clients.issue("client", uris=[SPIFFE])):
        with connect(daemon, world.tls(pair), made.secret) as client:
            assert client.who_am_i().name == "remote"
    with (
        connect(daemon, world.tls()) as client,
        pytest.raises(bursar.Unauthenticated, match="needs a token"),
    ):
        client.who_am_i()


@pytest.mark.asyncio
async def test_the_asynchronous_client_and_the_environment_do_the_same(
    world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = world.clients.issue("client", uris=[SPIFFE])
    async with bursar.connect_async(tcp_target(daemon), tls=world.tls(pair)) as client:
        assert (await client.who_am_i()).account == "acme/a"
    monkeypatch.setenv("BURSAR_TLS_CA", str(world.servers.path))
    monkeypatch.setenv("BURSAR_TLS_CERTIFICATE", str(pair.certificate))
    monkeypatch.setenv("BURSAR_TLS_KEY", str(pair.key))
    with bursar.connect(tcp_target(daemon)) as sync:
        assert sync.who_am_i().account == "acme/a"
    command = [sys.executable, "-m", "bursar", "whoami", "--target", tcp_target(daemon)]
    said = await asyncio.to_thread(subprocess.check_output, command, text=True, timeout=30)
    assert said.startswith(f"certificate {SPIFFE}: agent of acme/a")
    command[3:4] = ["health"]
    assert await asyncio.to_thread(subprocess.check_output, command, timeout=30) == b"it grants\n"
    with daemon.client() as local:  # what is said of TLS is not said of the socket
        assert local.who_am_i().role is Role.OPERATOR


def test_a_stream_ends_with_the_trust_in_its_certificate(world: World, tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.daemon() as daemon:
        pair = world.clients.issue("client", uris=[SPIFFE])
        with connect(daemon, world.tls(pair)) as client:
            client.record("acme/a", tokens=1)
            stream = client.watch_accounts("acme/a", min_interval_s=0.05)
            next(stream)
            other = Authority(world.folder, "others")
            world.ca.write_bytes(other.path.read_bytes())
            with pytest.raises(bursar.Unauthenticated, match="trusted no more"):
                deque(stream)
            with pytest.raises(bursar.Unauthenticated, match="trusted no more"):
                client.who_am_i()
        with connect(daemon, world.tls(pair)) as client, pytest.raises(bursar.SidecarUnavailable):
            client.who_am_i()
        pair = other.issue("other", uris=[SPIFFE])
        with connect(daemon, world.tls(pair)) as client:
            assert client.who_am_i().account == "acme/a"


def test_a_certificate_that_expires_on_an_open_connection_is_good_for_nothing(
    world: World, daemon: Daemon
) -> None:
    pair = world.clients.issue("client", uris=[SPIFFE], days=3 / 86_400)
    with connect(daemon, world.tls(pair)) as client:
        assert client.who_am_i().account == "acme/a"
        time.sleep(3.1)
        with pytest.raises(bursar.Unauthenticated, match="has expired"):
            client.who_am_i()


def served(daemon: Daemon, world: World) -> bytes:
    """The certificate that new connections are shown."""
    host, _, port = tcp_target(daemon).rpartition(":")
    context = ssl.create_default_context(cafile=world.servers.path)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    pair = world.clients.issue("client", uris=[SPIFFE])
    with world.daemon() as daemon, connect(daemon, world.tls(pair)) as early:
        early.who_am_i()
        first = served(daemon, world)
        world.serve_as("127.0.0.1")
        until(lambda: served(daemon, world) != first, "the new certificate is shown")
        assert "tls: new connections are shown the certificate of" in daemon.log
        second = served(daemon, world)
        whole = world.server.certificate.read_bytes()
        for content, said in ((b"nonsense", "no certificate in PEM"), (None, "cannot be read")):
            if content is None:
                world.server.certificate.unlink()
            else:
                world.server.certificate.write_bytes(content)
            until(lambda said=said: said in daemon.log, "it is told")  # type: ignore[misc]
            assert served(daemon, world) == second
        world.server.certificate.write_bytes(whole)
        world.server.key.chmod(0o644)
        until(lambda: "chmod 600" in daemon.log, "it is told")
        world.server.key.chmod(0o600)
        strangers = world.servers.issue("strangers", server=True)
        world.server.key.write_bytes(strangers.key.read_bytes())
        until(lambda: "is not that of the certificate" in daemon.log, "it is told")
        assert served(daemon, world) == second
        assert daemon.log.count("chmod 600") == 1
        assert early.who_am_i().account == "acme/a", "a connection that there is goes on"


def test_sighup_reads_certificates_again_and_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.daemon() as daemon:
        os.kill(daemon.pid, signal.SIGHUP)
        time.sleep(0.2)
        served(daemon, world)


@pytest.mark.parametrize("kind", ["expired", "other authority", "of a server"])
def test_a_wrong_certificate_is_refused(world: World, daemon: Daemon, kind: str) -> None:
    if kind == "expired":
        pair = world.clients.issue("wrong", uris=[SPIFFE], days=-1)
    elif kind == "other authority":
        pair = Authority(world.folder, "impostor").issue("wrong", uris=[SPIFFE])
    else:
        pair = world.clients.issue("wrong", uris=[SPIFFE], server=True)
    with connect(daemon, world.tls(pair)) as client, pytest.raises(bursar.SidecarUnavailable):
        client.who_am_i()


def test_a_sidecar_of_another_authority_is_not_talked_to(world: World, daemon: Daemon) -> None:
    tls = Tls(ca=world.clients.path)
    with connect(daemon, tls, "bursar_00_00") as client, pytest.raises(bursar.SidecarUnavailable):
        client.who_am_i()


def hello(daemon: Daemon, version: ssl.TLSVersion) -> str | None:
    host, _, port = tcp_target(daemon).rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    is_old = version < ssl.TLSVersion.TLSv1_2
    warns: AbstractContextManager[Any] = pytest.warns(DeprecationWarning, match="TLSv1_1")
    with warns if is_old else nullcontext():
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.version()


def test_old_versions_of_tls_are_refused(daemon: Daemon) -> None:
    assert hello(daemon, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert hello(daemon, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        hello(daemon, ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize("said", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_speaks_no_tls_is_hung_up_on(daemon: Daemon, said: bytes) -> None:
    host, _, port = tcp_target(daemon).rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain:
        plain.settimeout(5)
        plain.sendall(said)
        heard = b""
        while more := plain.recv(1024):
            heard += more
    assert b"HTTP" not in heard
    assert len(heard) <= 7, "an alert at the most"


def test_who_says_nothing_keeps_nobody_from_calling(world: World, daemon: Daemon) -> None:
    host, _, port = tcp_target(daemon).rpartition(":")
    silent = [socket.create_connection((host, int(port)), 5) for _ in range(20)]
    try:
        pair = world.clients.issue("client", uris=[SPIFFE])
        with connect(daemon, world.tls(pair)) as client:
            assert client.who_am_i().account == "acme/a"
    finally:
        for one in silent:
            one.close()


def test_the_proxy_has_the_same_tls_and_knows_the_same_certificates(world: World) -> None:
    upstream = {"name": "gone", "url": "http://127.0.0.1:9", "api": "openai"}
    proxy = {"listen": "127.0.0.1:0", "tls": True, "upstreams": [upstream]}
    with world.daemon(proxy=proxy, rates={"allow_unpriced": True}) as daemon:
        [base] = re.findall(r"proxy on (https://\S+)/v1", daemon.log)
        body = {"model": "m", "prompt": "x"}

        def answer(pair: Pair | None, account: str) -> int:
            context = ssl.create_default_context(cafile=str(world.servers.path))
            if pair is not None:
                context.load_cert_chain(pair.certificate, pair.key)
            url = f"{base}/a/{account}/v1/completions"
            return httpx.post(url, json=body, verify=context, timeout=10).status_code

        agent = world.clients.issue("agent", uris=[SPIFFE])
        observer = world.clients.issue("observer", dns=["watch.acme.example"])
        assert answer(None, "acme/a") == 401
        assert answer(world.clients.issue("nobody", common_name="x"), "acme/a") == 401
        assert answer(observer, "acme/a") == 403
        assert answer(agent, "acme/b") == 403
        assert answer(agent, "acme/a/x") == 502, "it is let through, and there is no upstream"
        with pytest.raises(httpx.HTTPError):
            httpx.get(base.replace("https", "http"), timeout=10)


def test_a_token_never_leaves_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("10.0.0.1:7411", "sidecar.example:7411", "localhost.example:1", "[fe80::1]:1"):
        with pytest.raises(bursar.InvalidRequest, match="in the clear"):
            bursar.connect(target, token="bursar_00_00")  # noqa: S106 -- no secret
        bursar.connect(target).close()
        monkeypatch.setenv("BURSAR_TOKEN", "bursar_00_00")
        with pytest.raises(bursar.InvalidRequest, match="in the clear"):
            bursar.connect_async(target)
        monkeypatch.delenv("BURSAR_TOKEN")
    for target in ("127.0.0.1:7411", "localhost:7411", "[::1]:7411", "unix:/x"):
        bursar.connect(target, token="bursar_00_00").close()  # noqa: S106 -- no secret


def test_what_cannot_be_read_is_told(world: World, tmp_path: Path) -> None:
    pair = world.clients.issue("client", uris=[SPIFFE])
    (tmp_path / "empty").touch()
    with pytest.raises(bursar.InvalidRequest, match="belong together"):
        Tls(certificate=pair.certificate)
    for ca, said in ((tmp_path / "gone", "cannot be read"), (tmp_path / "empty", "in PEM")):
        with pytest.raises(bursar.InvalidRequest, match=said):
            bursar.connect("127.0.0.1:1", tls=Tls(ca=ca))
    with pytest.raises(bursar.InvalidRequest, match="has no TLS"):
        bursar.connect("unix:/x", tls=Tls())


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    for mode in (0o640, 0o604, 0o660):
        world.server.key.chmod(mode)
        with pytest.raises(bursar.SidecarUnavailable, match="chmod 600"), world.daemon():
            pass
    world.server.key.chmod(0o400)
    with world.daemon():
        pass


@pytest.mark.parametrize("where", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
@pytest.mark.parametrize("what", ["server", "proxy", "dashboard", "metrics"])
def test_others_reach_no_listener_without_tls_and_enforcement(
    world: World, tmp_path: Path, where: str, what: str
) -> None:
    upstream = {"name": "gone", "url": "http://127.0.0.1:9", "api": "openai"}
    tls = world.section()
    enforce = {"mode": "enforce"}
    for has_tls, access, missing in (
        (False, {}, ["TLS", "enforce"]),
        (True, {}, ["enforce"]),
        (False, enforce, ["TLS"]),
    ):
        sections: dict[str, Any] = {"access": access, "server": {"tls": tls} if has_tls else {}}
        if what == "server":
            sections["server"] |= {"tcp": where}
        else:
            sections["server"] |= {"tcp": "127.0.0.1:0"}
            sections[what] = {"listen": where, "tls": has_tls}
        if what == "proxy":
            sections["proxy"]["upstreams"] = [upstream]
        with pytest.raises(bursar.SidecarUnavailable) as raised, Daemon(**sections):
            pass
        said = str(raised.value)
        assert "can be reached from other hosts" in said
        assert [one for one in ("TLS", "enforce") if one in said] == missing


def test_grpc_asks_for_http2(world: World, daemon: Daemon) -> None:
    """Whoever offers a protocol that is not spoken here is refused, and does not wait."""
    host, _, port = tcp_target(daemon).rpartition(":")
    context = ssl.create_default_context(cafile=world.servers.path)
    context.set_alpn_protocols(["http/1.1"])
    with socket.create_connection((host, int(port)), 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


ELSEWHERE: Final = "10.111.7.1"
AS_ANOTHER_HOST: Final = f"""
import pathlib, subprocess, sys
sys.path[:0] = sys.argv[2:]
for command in ("ip link set lo up", "ip addr add {ELSEWHERE}/32 dev lo"):
    subprocess.run(command.split(), check=True)
import bursar
from support.daemon import Daemon
from security_tls import SPIFFE, World
world = World(pathlib.Path(sys.argv[1]))
world.serve_as("{ELSEWHERE}")
server = {{"tcp": "{ELSEWHERE}:7411", "tls": world.section()}}
rows = [{{"uri": SPIFFE, "role": "agent", "account": "acme/a"}}]
with Daemon(server=server, access={{"mode": "enforce", "certificate": rows}}) as daemon:
    with daemon.client() as operator:
        token = operator.tokens.create("x", role=bursar.Role.AGENT, account="b", ttl_s=60).secret
    pair = world.clients.issue("client", uris=[SPIFFE])
    for shown in ({{"tls": world.tls(pair)}}, {{"tls": world.tls(), "token": token}}):
        with bursar.connect("{ELSEWHERE}:7411", **shown) as client:
            print(client.who_am_i().account)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network namespace")
def test_with_tls_and_enforcement_other_hosts_are_let_in(tmp_path: Path) -> None:
    """In a network namespace of its own, at an address that is not loopback."""
    (tmp_path / "security_tls.py").write_bytes(Path(__file__).read_bytes())
    code = [sys.executable, "-c", AS_ANOTHER_HOST, str(tmp_path)]
    places = [str(tmp_path), str(Path(__file__).parents[1])]
    said = subprocess.run(
        ["/usr/bin/unshare", "--net", *code, *places],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert said.stdout.split() == ["acme/a", "b"], said.stderr
