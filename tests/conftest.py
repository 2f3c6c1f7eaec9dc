"""What all Python tests share: folders, clients of real ledgers, and a model's server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.upstreams import engine, write_model

import bursar

CONFIG = """
[[accounts]]
path = "**"

[rates]
models = [
    { name = "tiny", input_nanos_per_million = 1_000_000, output_nanos_per_million = 2_000_000 },
]
"""


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server on a tiny random model: it stands for a provider."""
    pytest.importorskip("xllamacpp")
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(model)
    with engine(model) as address:
        yield address


@pytest.fixture(params=["embedded", "sidecar"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bursar.Client]:
    """A client of an empty ledger that accepts any account: the same tests for both transports."""
    if request.param == "embedded":
        config = tmp_path / "bursar.toml"
        config.write_text(CONFIG, encoding="utf-8")
        with bursar.open(tmp_path / "ledger", config=config) as embedded:
            yield embedded
        return
    from bursar.testing import Sidecar

    with Sidecar(CONFIG) as sidecar, sidecar.client() as remote:
        yield remote
