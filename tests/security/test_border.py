"""What is around the calls: sockets, modes, neighbours, health and reflection."""

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from support import wire
from support.bare import Bare, failed
from support.daemon import Daemon

import bursar
from bursar._grpc import channel_options


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(daemon.target, options=channel_options(daemon.target)) as one:
        yield one


@pytest.mark.parametrize(("mode", "bits"), [(None, 0o660), ("0600", 0o600), ("0666", 0o666)])
def test_the_socket_has_the_mode_of_the_configuration(mode: str | None, bits: int) -> None:
    sections: dict[str, Any] = {"server": {"socket_mode": mode}} if mode else {}
    with Daemon(**sections) as daemon:
        assert daemon.socket_path.stat().st_mode & 0o777 == bits
        assert daemon.socket_path.is_socket()


def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_serves_on(
    daemon: Daemon,
) -> None:
    second = Daemon()
    second.socket_path = daemon.socket_path
    with pytest.raises(bursar.SidecarUnavailable, match="another sidecar listens on it"), second:
        pass
    with daemon.client() as client:
        client.list_accounts()
        assert daemon.socket_path.is_socket()


def test_a_second_daemon_on_the_same_store_is_refused_and_names_the_store(daemon: Daemon) -> None:
    second = Daemon()
    second.store_path = daemon.store_path
    with pytest.raises(bursar.SidecarUnavailable) as caught, second:
        pass
    assert "ledger.db" in str(caught.value)
    with daemon.client() as client:
        client.set_budget("still", unit="tokens", limit=1)


def test_a_socket_that_a_crash_left_behind_is_replaced_and_a_file_is_not() -> None:
    with Daemon() as daemon:
        daemon.kill9()
        assert daemon.socket_path.is_socket()
        daemon.start()
        daemon.terminate()
        daemon.socket_path.write_text("precious", encoding="ascii")
        with pytest.raises(bursar.SidecarUnavailable, match="not a socket"):
            daemon.start()
        assert daemon.socket_path.read_text(encoding="ascii") == "precious"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7411", "example.com:1"])
def test_tcp_that_is_not_loopback_is_refused_with_the_reason(address: str) -> None:
    with pytest.raises(bursar.SidecarUnavailable, match="tcp"), Daemon(server={"tcp": address}):
        pass


def test_the_core_refuses_tcp_that_is_not_loopback_by_itself() -> None:
    """The configuration is checked in Python; who passes it by meets the same wall in Rust."""
    import json

    from bursar import _core
    from bursar.daemon.config import Config

    core = json.loads(Config.embedded().to_core_json())
    core["listen"] |= {"tcp": "0.0.0.0:0", "unix": None}
    with pytest.raises(_core.CoreError, match="can be reached from other hosts"):
        _core.Server(json.dumps(core))


def test_tcp_on_loopback_and_the_socket_serve_one_ledger() -> None:
    with Daemon(server={"tcp": "127.0.0.1:0"}) as daemon, daemon.client() as client:
        target = daemon.log.splitlines()[-1].rpartition(", ")[2]
        with bursar.connect(target) as remote:
            remote.set_budget("acme", unit="tokens", limit=5)
            assert client.get_account("acme").balances[0].limit == 5
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as other:
            other.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert len(other.recv(4_096)) < 4_096
        assert client.get_account("acme").balances[0].limit == 5


def test_health_says_that_both_services_serve(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "bursar.v1.LedgerService", "bursar.v1.AccountService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_their_messages(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"bursar.v1.LedgerService", "bursar.v1.AccountService"} <= services
    file = database.FindFileContainingSymbol("bursar.v1.LedgerService")
    assert "ReserveRequest" in {message.name for message in file.message_type}


@pytest.mark.parametrize(
    "path",
    ["/bursar.v1.LedgerService/Steal", "/bursar.v2.LedgerService/Reserve", "/", "/x", "/a/b/c"],
)
def test_methods_that_do_not_exist_are_unimplemented(channel: grpc.Channel, path: str) -> None:
    call: Any = channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10)
    assert failed(caught.value).code == "UNIMPLEMENTED"


def test_one_connection_more_than_allowed_is_closed_and_the_others_work() -> None:
    with Daemon(server={"max_connections": 8}) as daemon:
        with Bare(daemon.target) as bare:
            first = "AccountService/ListAccounts"
            bare(first, b"")
            idle = [socket.socket(socket.AF_UNIX) for _ in range(7)]
            for one in idle:
                one.connect(str(daemon.socket_path))
            with socket.socket(socket.AF_UNIX) as one_more:
                one_more.settimeout(5)
                one_more.connect(str(daemon.socket_path))
                assert one_more.recv(100) == b""
            bare(first, b"")
            for one in idle:
                one.close()
        with daemon.client() as client:  # with the SDK's patience, until there is room
            client.set_budget("acme", unit="tokens", limit=1)


def test_a_configuration_that_another_user_could_never_serve_says_what_is_in_the_way() -> None:
    """A socket in a folder that is not there: the message names the socket."""
    daemon = Daemon()
    daemon.socket_path = daemon.folder / "missing" / "bursar.sock"
    with pytest.raises(bursar.SidecarUnavailable) as caught, daemon:
        pass
    assert "missing/bursar.sock" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_the_command_line_says_where_it_looked_when_nobody_answers(daemon: Daemon) -> None:
    nowhere = daemon.folder / "nowhere.sock"
    command = [sys.executable, "-m", "bursar", "account", "list", "--target", f"unix:{nowhere}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 4
    assert str(nowhere) in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_connection_is_told_how_many_calls_it_may_make_at_a_time() -> None:
    """HTTP/2 lets the daemon say so first thing; a library then holds back what is more."""
    with Daemon(server={"max_concurrent_calls_per_connection": 7}) as daemon:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(10)
            one.connect(str(daemon.socket_path))
            one.sendall(wire.start())
            got = b""
            while len(got) < 9 or len(got) < 9 + int.from_bytes(got[:3], "big"):
                got += one.recv(4_096)
        assert got[3] == wire.SETTINGS
        settings = got[9 : 9 + int.from_bytes(got[:3], "big")]
        pairs = dict(
            struct.unpack(">HI", settings[at : at + 6]) for at in range(0, len(settings), 6)
        )
        assert pairs[3] == 7  # SETTINGS_MAX_CONCURRENT_STREAMS
