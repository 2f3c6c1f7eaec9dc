"""What the adapters' tests share: ledgers of three kinds and a real engine."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.traced import Traced

import bursar
from bursar.middleware import _telemetry
from bursar.testing import Sidecar

CONFIG = """
[[accounts]]
path = "**"

[rates]
models = [
    { name = "big", input_nanos_per_million = 10_000_000, output_nanos_per_million = 20_000_000 },
    { name = "small", input_nanos_per_million = 1_000_000, output_nanos_per_million = 2_000_000 },
]
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[bursar.Client]:
    """A ledger in this process that knows the prices of two models."""
    config = tmp_path / "bursar.toml"
    config.write_text(CONFIG, encoding="utf-8")
    with bursar.open(tmp_path / "ledger", config=config) as client:
        yield client


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """A daemon that knows the same."""
    with Sidecar(CONFIG) as one:
        yield one


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    """A llama.cpp server on the tiny model, with one slot."""
    pytest.importorskip("xllamacpp", reason="the extra xllamacpp is not installed")
    pytest.importorskip("gguf", reason="gguf writes the model; it is not installed")
    from support import llama

    folder = Path(tempfile.mkdtemp(prefix="bursar-llama-"))
    try:
        yield llama.start(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """What generations tell OpenTelemetry."""
    one = Traced()
    monkeypatch.setattr(_telemetry, "_OURS", _telemetry.instruments(one.tracers, one.meters))
    yield one
    one.close()
