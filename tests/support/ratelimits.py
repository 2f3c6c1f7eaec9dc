"""Envoy's rate limit service as its clients see it, and a real Envoy in front of an upstream."""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bursar._grpc import channel_options
from support.bare import failed

PACKAGE: Final = "envoy.service.ratelimit.v3"
PROTO: Final = "envoy/service/ratelimit/v3/rls.proto"
OK: Final = 1
OVER_LIMIT: Final = 2
START_S: Final = 30


def rule(entries: Sequence[str], account: str, **more: Any) -> dict[str, Any]:
    """A table of `[[envoy.rules]]` for the domain "edge"."""
    return {"domain": "edge", "entries": list(entries), "account": account, **more}


class RateLimits:
    """A client on stubs that protoc makes of `proto/envoy`."""

    def __init__(self, project: Path, target: str, *, token: str = "") -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "set"
            protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{project / 'proto'}"]
            outputs = [f"--descriptor_set_out={made}", "--include_imports", PROTO]
            subprocess.run([*protoc, *outputs], check=True)
            files = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self._request: Any = self._message(pool, "RateLimitRequest")
        self._channel = grpc.insecure_channel(target, options=channel_options(target))
        self._call: Any = self._channel.unary_unary(
            f"/{PACKAGE}.RateLimitService/ShouldRateLimit",
            request_serializer=self._request.SerializeToString,
            response_deserializer=self._message(pool, "RateLimitResponse").FromString,
        )
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    @staticmethod
    def _message(pool: descriptor_pool.DescriptorPool, name: str) -> Any:
        found = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        return message_factory.GetMessageClass(found)

    def __call__(
        self,
        *descriptors: Mapping[str, str],
        hits: int = 0,
        own: Sequence[int | None] = (),
        domain: str = "edge",
    ) -> Any:
        """Asks once; `own` are the hits of the single descriptors. Raises `Failed`."""
        request = self._request(domain=domain, hits_addend=hits)
        for entries in descriptors:
            descriptor = request.descriptors.add()
            for key, value in entries.items():
                descriptor.entries.add(key=key, value=value)
        for descriptor, addend in zip(request.descriptors, own, strict=False):
            if addend is not None:
                descriptor.hits_addend.value = addend
        return self.send(request)

    def request(self, **fields: Any) -> Any:
        """A request to fill in by hand."""
        return self._request(**fields)

    def send(self, request: Any) -> Any:
        """The answer to a request."""
        try:
            return self._call(request, timeout=10, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failed(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def codes(answer: Any) -> tuple[int, list[int]]:
    """The overall code, and those of the descriptors."""
    return answer.overall_code, [status.code for status in answer.statuses]


def headers(answer: Any) -> dict[str, str]:
    """What is to be added to the response."""
    return {header.key: header.value for header in answer.response_headers_to_add}


class _Model(BaseHTTPRequestHandler):
    """Answers as a model that used as many tokens as the header x-use says; -1: it does not say."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        used = int(self.headers.get("x-use", "0"))
        said = {} if used < 0 else {"usage": {"total_tokens": used}}
        body = json.dumps({"object": "chat.completion", **said}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("x-total-tokens", str(used))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
        """Says nothing."""


@contextmanager
def model_server() -> Iterator[int]:
    """The port of a model's server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Model) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def envoy(config: dict[str, Any], folder: Path) -> Iterator[httpx.Client]:
    """A client of a real Envoy with this configuration, whose listener gets a free port."""
    program = _envoy_program()
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"]["port_value"] = 0
    any_port = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    path, admin, log = folder / "envoy.json", folder / "admin", folder / "envoy.log"
    path.write_text(json.dumps({**config, "admin": {"address": any_port}}), encoding="utf-8")
    options = ["-l", "warning", "--disable-hot-restart", "--concurrency", "1"]
    command = [program, "-c", str(path), "--admin-address-path", str(admin), *options]
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            port = _port(process, admin, log)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _envoy_program() -> str:
    spec = find_spec("envoy")
    places = spec.submodule_search_locations if spec else None
    found = [place for place in places or () if (Path(place) / "_bin/envoy").exists()]
    program = f"{found[0]}/_bin/envoy" if found else shutil.which("envoy")
    if program is None:
        pytest.skip("envoy is not installed: it is in the extra dev for Linux on x86-64")
    return program


def _port(process: "subprocess.Popen[bytes]", admin: Path, log: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, httpx.HTTPError, KeyError):
            address = admin.read_text(encoding="utf-8")
            if address and httpx.get(f"http://{address}/ready").text.strip() == "LIVE":
                listening = httpx.get(f"http://{address}/listeners?format=json").json()
                [one] = listening["listener_statuses"]
                return int(one["local_address"]["socket_address"]["port_value"])
        time.sleep(0.02)
    raise AssertionError(f"Envoy does not listen:\n{log.read_text(encoding='utf-8')}")
