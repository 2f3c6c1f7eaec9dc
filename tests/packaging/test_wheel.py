"""The wheel in a bare environment: without a Rust toolchain, light, typed, and soon of use.

Goal: `pip install`, `bursar serve` and a first Reserve work as on a user's machine. Method: the
wheel is packed from what `make build` compiled, and installed with its dependencies from PyPI.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.timeout(900)

PACK_S: Final = 600  # what changed since `make build` is compiled
INSTALL_S: Final = 120
READY_S: Final = 60
WHEEL_BYTES_MAX: Final = 40 * 2**20
INSTALLED_BYTES_MAX: Final = 130 * 2**20
LIGHT: Final = {
    *("bursar-sidecar", "click", "googleapis-common-protos", "grpcio", "grpcio-health-checking"),
    *("protobuf", "typing-extensions"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("rich", "markdown-it-py", "mdurl", "pygments"),
}
"""All that `pip install bursar-sidecar` brings."""

FIRST = """
import bursar

with bursar.connect() as client:
    client.set_budget("acme", unit="tokens", limit=100)
    with client.reserve("acme/agent", tokens=60) as hold:
        hold.debit(used={"tokens": 20})
        print(hold.commit(tokens=50).spent)
    print(client.count_tokens("o200k_base", text="Hello, world").token_count)
"""
USER = """
import bursar

def spend(client: bursar.Client) -> int:
    with client.reserve("acme/agent", tokens=60) as hold:
        if hold.debit(used={"tokens": 20}).verdict is bursar.Verdict.STOP:
            return 0
        return hold.commit(tokens=50).spent["tokens"]
"""


def without_a_toolchain() -> dict[str, str]:
    """The environment of somebody who has neither Rust nor this source tree."""
    kept = {
        name: one for name, one in os.environ.items() if not name.startswith(("PYTHON", "CARGO"))
    }
    folders = kept["PATH"].split(os.pathsep)
    kept["PATH"] = os.pathsep.join(one for one in folders if not (Path(one) / "cargo").exists())
    assert shutil.which("cargo", path=kept["PATH"]) is None
    return kept


def run(*command: str | Path, limit_s: float = READY_S) -> str:
    ran = subprocess.run(
        list(map(str, command)),
        env=without_a_toolchain(),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def dist(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sources."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", project / "target"))
    if not (target / "release/lib_core.so").exists():
        pytest.skip("there is nothing to pack: `make build` compiles it")
    folder = tmp_path_factory.mktemp("dist")
    for command in (["sdist"], ["build", "--release", "--locked"]):
        ran = subprocess.run(
            [sys.executable, "-m", "maturin", *command, "--out", str(folder)],
            cwd=project,
            env=os.environ | {"VIRTUAL_ENV": sys.prefix},  # as `make build`: all is compiled
            capture_output=True,
            text=True,
            timeout=PACK_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [path] = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, float]]:
    """The scripts of an environment with nothing but the wheel, and how long the install took."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    began = time.monotonic()
    try:
        run(folder / "bin/pip", "install", "--quiet", wheel, limit_s=INSTALL_S)
    except AssertionError as failed:
        if re.search("connection|resolve host|No matching distribution found", str(failed)):
            pytest.skip(f"PyPI cannot be reached: {str(failed)[-200:]}")
        raise
    yield folder / "bin", time.monotonic() - began
    shutil.rmtree(folder)


@contextmanager
def serving(scripts: Path, folder: Path) -> Iterator[dict[str, str]]:
    """`bursar serve`; the environment that reaches it."""
    config = folder / "bursar.toml"
    config.write_text(
        f'[server]\nsocket = "{folder}/b.sock"\n[store]\npath = "{folder}/ledger.db"\n'
        '[[accounts]]\npath = "**"\n',
        encoding="utf-8",
    )
    command = [str(scripts / "bursar"), "serve", "--config", str(config)]
    with subprocess.Popen(
        command, env=without_a_toolchain(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            assert any("listening on" in line for line in lines), "it has ended"
            yield without_a_toolchain() | {"BURSAR_TARGET": f"unix:{folder}/b.sock"}
        finally:
            process.terminate()


def test_the_wheel_is_for_every_python_and_this_glibc(wheel: Path) -> None:
    """By its name, which maturin gives it after a look at the symbols that it needs."""
    assert re.fullmatch(r"bursar_sidecar-[\d.]+-cp311-abi3-manylinux_2_\d+_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < WHEEL_BYTES_MAX
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "THIRD-PARTY-LICENSES.txt"}
    assert {"bursar/py.typed", "bursar/_core.pyi", "bursar/rates/rates.toml"} <= set(names)
    assert [name for name in names if name.startswith(("tests", "rust", "proto"))] == []


def test_the_sources_have_all_that_a_build_reads(dist: Path, project: Path) -> None:
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    protos = {str(one.relative_to(project)) for one in (project / "proto").rglob("*.proto")}
    assets = (project / "rust/server/src/dashboard/assets").iterdir()
    assert {"Cargo.lock", "LICENSE", "README.md", "rust/server/build.rs"} <= names
    assert {*protos, *(str(one.relative_to(project)) for one in assets)} <= names


def test_installing_it_is_light(installed: tuple[Path, float]) -> None:
    scripts, _ = installed
    listed = json.loads(run(scripts / "pip", "list", "--format", "json"))
    assert {canonicalize_name(one["name"]) for one in listed} - {"pip", "setuptools"} <= LIGHT
    sizes = {
        path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for path in (scripts.parent / "lib").glob("python3*/site-packages/*")
        if path.name.partition("-")[0] not in {"pip", "setuptools"}
    }
    print({name: f"{size / 2**20:.1f} MiB" for name, size in sizes.items()}, sum(sizes.values()))
    assert sum(sizes.values()) < INSTALLED_BYTES_MAX


def test_it_serves_a_first_reserve_soon_after(
    installed: tuple[Path, float], tmp_path: Path
) -> None:
    scripts, install_s = installed
    began = time.monotonic()
    with serving(scripts, tmp_path) as environment:
        ran = subprocess.run(
            [scripts / "python", "-c", FIRST],
            env=environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (0, "{'tokens': 50}\n3\n"), ran.stderr
    first_s = time.monotonic() - began
    print(f"pip install {install_s:.1f} s, then serve and a first reservation {first_s:.1f} s")
    assert install_s + first_s < INSTALL_S


def test_it_says_its_version_and_runs_the_demo(installed: tuple[Path, float]) -> None:
    scripts, _ = installed
    said = run(scripts / "bursar", "--version")
    assert (
        run(scripts / "pip", "show", "bursar-sidecar").splitlines()[1].split()[-1]
        == said.split()[-1]
    )
    assert "stopped" in run(scripts / "bursar", "demo")


def test_what_users_write_is_type_checked(installed: tuple[Path, float], tmp_path: Path) -> None:
    scripts, _ = installed
    program = tmp_path / "user.py"
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    mypy += ["--cache-dir", os.devnull, "--python-executable", str(scripts / "python")]
    for text, complaint in (
        (USER, ""),
        (USER.replace("tokens=60", 'tokens="60"'), 'has incompatible type "str"'),
        (USER.replace("bursar.Client", "bursar.Customer"), 'Name "bursar.Customer" is not defined'),
    ):
        program.write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [*mypy, str(program)],
            cwd=tmp_path,
            env=without_a_toolchain(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode != 0) is bool(complaint), ran.stdout
        assert complaint in ran.stdout
