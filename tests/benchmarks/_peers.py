"""The peers that the sidecar is measured against: how each is found, started, stopped and called.

A peer runs as a user would install it, on a Unix socket where it has one, else on loopback, in a
folder of its own. One that is not installed is skipped by name. Nothing here installs anything:
programs are looked for in the folders of `BURSAR_PEERS` and on PATH.
"""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import _servers

START_WAIT_S = 60.0
STOP_WAIT_S = 10.0
ASK_WAIT_S = 60.0
LOG_TAIL_BYTES = 400

LIMITADOR_LIMITS = """\
- namespace: budgets
  max_value: 1000000000000000
  seconds: 86400
  conditions: []
  variables: ["descriptors[0].budget"]
"""
RATELIMIT_RULES = """\
domain: budgets
descriptors:
  - key: budget
    rate_limit:
      unit: day
      requests_per_unit: 4294967295
"""

LITELLM_KEY = "sk-of-the-benchmark-0123456789abcdef"  # as the load shows it


class NotThereError(Exception):
    """A peer cannot be measured; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a peer may put things: a folder of its own, and a path short enough for a socket."""

    folder: Path
    socket: Path


@dataclass(frozen=True)
class Start:
    """How a peer's own program is run."""

    command: list[str | Path]
    address: Path | str
    environment: dict[str, str] = field(default_factory=dict)


class Peer:
    """What every peer says of itself."""

    name: str
    programs: tuple[str, ...]  # names that the program goes by
    mode: str  # of the load, for what is nearest to Reserve or to Reserve and Commit
    transport: str
    does: str
    durability: str
    version: tuple[str, ...] = ()  # arguments that make it tell its version
    patience: int = 1  # how many times as long it is measured: a slow one answers little

    def start(self, program: Path, place: Place) -> Start:
        """How it is run there."""
        raise NotImplementedError

    def helpers(self) -> list["Redis"]:
        """What has to run before it."""
        return []


@dataclass(frozen=True)
class Redis(Peer):
    """Redis, with a budget kept by Lua scripts of our own."""

    name: str
    durability: str
    fsync: str | None = None  # None: no append-only file
    programs = ("redis-server",)
    mode = "redis-pair"
    transport = "Unix socket"
    does = (
        "Lua scripts: a budget without ancestors, holds with a key and a time to live; no windows,"
        " no entries"
    )
    version = ("--version",)

    def start(self, program: Path, place: Place) -> Start:
        """No snapshots, and no rewriting of the file while it is measured."""
        command: list[str | Path] = [program, "--port", "0", "--unixsocket", place.socket]
        command += ["--dir", place.folder, "--save", "", "--daemonize", "no"]
        command += ["--loglevel", "warning", "--auto-aof-rewrite-percentage", "0"]
        if self.fsync:
            command += ["--appendonly", "yes", "--appendfsync", self.fsync]
        return Start(command, place.socket)


class EnvoyRatelimit(Peer):
    """Envoy's reference rate limit service, and the Redis that it keeps its counters in."""

    name = "envoy_ratelimit"
    programs = ("ratelimit", "service_cmd")  # the second is what `go install` calls it
    mode = "rate-limit"
    transport = "Unix socket"
    does = "One fixed-window counter: check and add; no holds, no keys"
    durability = "its Redis, here without a file: kill -9 of that loses everything"

    def start(self, program: Path, place: Place) -> Start:
        """Its rules are a file; its gRPC socket and its Redis are told by the environment."""
        rules = place.folder / "runtime" / "ratelimit" / "config" / "budgets.yaml"
        rules.parent.mkdir(parents=True)
        rules.write_text(RATELIMIT_RULES, encoding="utf-8")
        (redis,) = self.helpers()
        environment = {
            "GRPC_UDS": str(place.socket),
            "REDIS_SOCKET_TYPE": "unix",
            "REDIS_URL": str(place.socket.with_name(f"{redis.name}.sock")),
            "BACKEND_TYPE": "redis",
            "RUNTIME_ROOT": str(place.folder / "runtime"),
            "RUNTIME_SUBDIRECTORY": "ratelimit",
            "RUNTIME_WATCH_ROOT": "false",
            "USE_STATSD": "false",
            "LOG_LEVEL": "error",
        }
        for listener in ("", "DEBUG_", "GRPC_"):
            environment[f"{listener}HOST"] = "127.0.0.1"
            environment[f"{listener}PORT"] = str(free_port())
        return Start([program], place.socket, environment)

    def helpers(self) -> list[Redis]:
        """A Redis of its own."""
        return [Redis("envoy_redis", self.durability)]


class Gubernator(Peer):
    """Gubernator, alone in its cluster."""

    name = "gubernator"
    programs = ("gubernator",)
    mode = "hits"
    transport = "TCP"
    does = "One counter in a cache of bounded size: check and add; no holds, no keys"
    durability = "kill -9 loses everything; a full cache evicts"

    def start(self, program: Path, place: Place) -> Start:
        """Even alone it wants to know the members of its cluster."""
        address, member = (f"127.0.0.1:{free_port()}" for _ in range(2))
        environment = {
            "GUBER_GRPC_ADDRESS": address,
            "GUBER_ADVERTISE_ADDRESS": address,
            "GUBER_HTTP_ADDRESS": f"127.0.0.1:{free_port()}",
            "GUBER_PEER_DISCOVERY_TYPE": "member-list",
            "GUBER_MEMBERLIST_ADDRESS": member,
            "GUBER_MEMBERLIST_BIND_ADDRESS": member,
            "GUBER_MEMBERLIST_KNOWN_NODES": member,
            "GUBER_LOG_LEVEL": "error",
            "OTEL_SDK_DISABLED": "true",
            "OTEL_TRACES_EXPORTER": "none",
        }
        return Start([program], address, environment)


class Limitador(Peer):
    """Limitador's server, with its counters in memory."""

    name = "limitador"
    programs = ("limitador-server",)
    mode = "rate-limit"
    transport = "TCP"
    does = "One fixed-window counter: check and add; no holds, no keys"
    durability = "kill -9 loses everything"
    version = ("--version",)

    def start(self, program: Path, place: Place) -> Start:
        """Its limits are a file; it has ports only."""
        limits = place.folder / "limits.yaml"
        limits.write_text(LIMITADOR_LIMITS, encoding="utf-8")
        grpc, http = free_port(), free_port()
        command: list[str | Path] = [program, "-b", "127.0.0.1", "-p", str(grpc)]
        command += ["-B", "127.0.0.1", "-P", str(http), limits, "memory"]
        return Start(command, f"127.0.0.1:{grpc}")


class LiteLLM(Peer):
    """LiteLLM's proxy, with one worker and nothing but a model to pass on to."""

    name = "litellm"
    programs = ("litellm",)
    mode = "stream-1"
    transport = "TCP"
    does = (
        "Chat completions by one worker: checks a master key and passes on; no budget, no entries"
    )
    durability = "keeps nothing: no database is configured"
    version = ("--version",)
    patience = 5

    def start(self, program: Path, place: Place) -> Start:
        """Its configuration is YAML, of which JSON is a part; it must not ask the network."""
        port = free_port()
        model = {"model": "openai/m", "api_base": f"http://{upstream()}/v1", "api_key": "none"}
        config = {
            "model_list": [{"model_name": "m", "litellm_params": model}],
            "general_settings": {"master_key": LITELLM_KEY},
        }
        path = place.folder / "config.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        command: list[str | Path] = [program, "--config", path, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        return Start(command, f"127.0.0.1:{port}", environment)


def peers() -> dict[str, Peer]:
    """All of them, by name."""
    every: list[Peer] = [
        Redis("redis", "kill -9 loses everything"),
        Redis(
            "redis_aof_everysec",
            "kill -9 loses nothing unless the disk stalls; a power cut about a second",
            "everysec",
        ),
        Redis("redis_aof_always", "neither kill -9 nor a power cut loses anything", "always"),
        EnvoyRatelimit(),
        Gubernator(),
        Limitador(),
        LiteLLM(),
    ]
    return {peer.name: peer for peer in every}


def find(peer: Peer) -> Path:
    """Its program; raises where there is none."""
    path = os.pathsep.join([os.environ.get("BURSAR_PEERS", ""), os.environ.get("PATH", "")])
    for name in peer.programs:
        if found := shutil.which(name, path=path):
            # Not resolved: Redis does what the name that it is called by says.
            return Path(found).absolute()
    names = " or ".join(peer.programs)
    raise NotThereError(f"no {names} in BURSAR_PEERS or on PATH")


def told_version(peer: Peer) -> str:
    """What its program says about its version, in a line; nothing where it does not tell."""
    if not peer.version:
        return ""
    asked = subprocess.run(
        [find(peer), *peer.version], capture_output=True, check=False, text=True, timeout=ASK_WAIT_S
    )
    return (asked.stdout.strip() or asked.stderr.strip()).partition("\n")[0]


@contextmanager
def running(peer: Peer, folder: Path, sockets: Path) -> Iterator[_servers.Server]:
    """Starts a peer and what it needs; raises where that fails; ends all of them by their pids."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for each in [*peer.helpers(), peer]:
            place = Place(folder / each.name, sockets / f"{each.name}.sock")
            place.folder.mkdir()
            start = each.start(find(each), place)
            with (place.folder / "log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        start.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=place.folder,
                        env=os.environ | start.environment,
                    )
                )
            wait_until_it_listens(each, started[-1], start.address, place.folder / "log")
        helpers = tuple(process.pid for process in started[:-1])
        yield _servers.Server(peer.name, start.address, started[-1], helpers)
    finally:
        for process in reversed(started):
            stop(peer, process)


def wait_until_it_listens(
    peer: Peer, process: subprocess.Popen[bytes], address: Path | str, log: Path
) -> None:
    """Returns once a connection is accepted."""
    deadline = time.monotonic() + START_WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            connect(address).close()
            return
        time.sleep(0.1)
    tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    raise NotThereError(f"{peer.name} does not listen: {tail or 'it says nothing'}")


def connect(address: Path | str) -> socket.socket:
    """One connection."""
    if isinstance(address, Path):
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            unix.connect(str(address))
        except OSError:
            unix.close()
            raise
        return unix
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=1.0)


def stop(peer: Peer, process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and ends it if it does not."""
    process.terminate()
    try:
        process.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{peer.name} ignored SIGTERM for {STOP_WAIT_S:.0f} s\n")
        process.kill()
        process.wait()


@functools.cache
def upstream() -> str:
    """Where what stands behind the proxies listens in this run."""
    return f"127.0.0.1:{free_port()}"


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
