"""Programs in other languages: fetched, generated and compiled by their own tools, then run.

A tool that is missing, or a registry that cannot be reached, skips the language by name. What goes
wrong after everything is fetched, or with the lock files, fails.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

FETCH_S: Final = 120
MAKE_S: Final = 240
RUN_S: Final = 60
PROTO: Final = ("bursar/v1/ledger.proto", "bursar/v1/errors.proto")
COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
OUR_FAULT: Final = (
    *("EUSAGE", "EINTEGRITY", "EJSONPARSE"),  # npm: the lock does not fit
    *("SECURITY ERROR", "errors parsing", "missing go.sum"),  # go
    *("Non-parseable POM", "The project has", "COMPILATION ERROR"),  # mvn
)
"""What says that a fetch failed by what is in the tree, and not for want of a registry."""


class Workshop:
    """A copy of one language's sources in a build folder of its own, below `target`."""

    def __init__(
        self, project: Path, language: str, *tools: str, sources: str = "tests/clients"
    ) -> None:
        for tool in tools:
            if shutil.which(tool) is None:
                pytest.skip(f"{language}: {tool} is not installed")
        self.language = language
        self.proto = project / "proto"
        self.folder = project / "target" / sources.removeprefix("tests/") / language
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(project / sources / language, self.folder)

    def fetch(self, *command: str) -> None:
        """Fetches what the sources need; skips where that cannot be had."""
        try:
            ran = self._run(command, FETCH_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{self.language}: no registry answered within {FETCH_S} s")
        if ran.returncode == 0:
            return
        said = COLOURS.sub("", ran.stdout + ran.stderr)
        if any(one in said for one in OUR_FAULT):
            pytest.fail(f"{self.language}: {' '.join(command)}\n{said}")
        lines = [line.strip() for line in said.splitlines() if " " in line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines[-1:]
        pytest.skip(f"{self.language}: its registry cannot be reached: {'; '.join(told[:2])[:300]}")

    def make(self, *command: str) -> str:
        """Generates or compiles without any network; returns what was printed."""
        ran = self._run(command, MAKE_S)
        if ran.returncode != 0:
            pytest.fail(f"{self.language}: {' '.join(command)}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def _run(self, command: tuple[str, ...], limit_s: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"GOWORK": "off"},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


def go(project: Path) -> Workshop:
    """Builds `client`, with stubs by the plugins that go.mod names as tools."""
    shop = Workshop(project, "go", "go")
    shop.fetch("go", "mod", "download")
    build = ("go", "build", "-buildvcs=false", "-o")
    shop.make(*build, "bin/", "google.golang.org/protobuf/cmd/protoc-gen-go")
    shop.make(*build, "bin/", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")
    module = "example.com/bursar/client"
    options = []
    for plugin in ("go", "go-grpc"):
        options += [f"--plugin=bin/protoc-gen-{plugin}", f"--{plugin}_out=."]
        options += [f"--{plugin}_opt=module={module}"]
        options += [f"--{plugin}_opt=M{proto}={module}/bursarv1" for proto in PROTO]
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"-I{shop.proto}")
    shop.make(*protoc, *options, *PROTO)
    shop.make(*build, "client", ".")
    return shop


def go_envoy(project: Path) -> Workshop:
    """Builds `client` on the stubs of Envoy's project, and `client_cmd` of its own service."""
    shop = Workshop(project, "envoy", "go")
    shop.fetch("go", "mod", "download")
    shop.make("go", "build", "-buildvcs=false", "-o", "client", ".")
    client_cmd = "github.com/envoyproxy/ratelimit/src/client_cmd"
    shop.make("go", "build", "-buildvcs=false", "-o", "client_cmd", client_cmd)
    return shop


def node(project: Path, program: str = "node") -> Workshop:
    """Installs the packages of a program; nothing is compiled."""
    shop = Workshop(project, program, "node", "npm")
    shop.fetch("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
    return shop


def java(project: Path) -> Workshop:
    """Compiles `classes` against `lib`, where protoc and its plugin are as well."""
    shop = Workshop(project, "java", "java", "javac", "mvn")
    machine = {"aarch64": "aarch_64"}.get(platform.machine(), platform.machine())
    shop.fetch(
        *("mvn", "--batch-mode", "--no-transfer-progress", "--quiet"),
        *("dependency:copy-dependencies", "-DoutputDirectory=lib"),
        f"-Dplatform=linux-{machine}",
    )
    for program in (shop.folder / "lib").glob("*.exe"):
        program.chmod(0o755)
    (plugin,) = (shop.folder / "lib").glob("protoc-gen-grpc-java-*.exe")
    (protoc,) = (shop.folder / "lib").glob("protoc-[0-9]*.exe")
    (shop.folder / "generated").mkdir()
    shop.make("jar", "xf", str(next((shop.folder / "lib").glob("protobuf-java-[0-9]*.jar"))))
    shop.make(
        *(str(protoc), f"-I{shop.proto}", "-I.", f"--plugin=protoc-gen-grpc-java={plugin}"),
        *("--java_out=generated", "--grpc-java_out=generated", *PROTO),
    )
    generated = map(str, (shop.folder / "generated").rglob("*.java"))
    strict = ("-Xlint:all", "-Werror", "-d", "classes", "-cp", "lib/*")
    shop.make("javac", *strict, "Client.java", *generated)
    return shop


def c(project: Path) -> Workshop:
    """Compiles `lease`, and `lease-2`, which speaks a layout that does not exist."""
    shop = Workshop(project, "c", "gcc")
    gcc = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
    shop.make(*gcc, "-o", "lease", "lease.c")
    shop.make(*gcc, "-DLAYOUT_VERSION=2", "-o", "lease-2", "lease.c")
    return shop


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """The program while the context lasts; it is killed if it has not ended by then."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What it printed: one line of JSON."""
    output, errors = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, errors
    seen: dict[str, Any] = json.loads(output)
    return seen


def complaint(process: "subprocess.Popen[str]") -> str:
    """What it wrote to stderr when it gave up."""
    output, errors = process.communicate(timeout=RUN_S)
    assert (process.returncode, output) == (1, ""), errors
    return errors
