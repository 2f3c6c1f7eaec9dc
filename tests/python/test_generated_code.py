"""The committed wire types are what protoc makes of the proto files, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_generated_code_is_up_to_date(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the extra dev")
    protos = sorted((project / "proto/bursar/v1").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{project / 'proto'}", *outputs]
    subprocess.run([*command, *map(str, protos)], check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "bursar/v1").iterdir()}
    folder = project / "python/bursar/v1"
    committed = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert sorted(committed) == sorted(made)
    stale = [name for name, content in made.items() if committed[name] != content]
    assert stale == [], "run grpc_tools.protoc again, as this test does, into python/"
