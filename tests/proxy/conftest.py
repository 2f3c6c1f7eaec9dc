"""The real engine, once for all tests of a worker."""

from collections.abc import Iterator

import pytest
from support.upstreams import engine, write_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server on a tiny random model."""
    pytest.importorskip("xllamacpp")
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(model)
    with engine(model) as address:
        yield address
