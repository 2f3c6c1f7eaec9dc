"""The example texts, and what else repeats them."""

import hashlib
import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENTS = sorted(EXAMPLES.glob("*.txt"))
VECTORS = json.loads((Path(__file__).parent / "token_vectors.json").read_text(encoding="utf-8"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_readme_names_every_document_with_its_hash() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE))
    assert named == {sha256(file): file.name for file in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_a_document_is_clean_text_of_a_useful_size(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert 20_000 < len(text.encode()) < 150_000
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert all(line == line.rstrip() for line in text.split("\n"))


def test_the_token_vectors_were_counted_on_these_documents() -> None:
    counted = {one["file"]: one["sha256"] for one in VECTORS["documents"]}
    assert counted == {f"examples/{file.name}": sha256(file) for file in DOCUMENTS}


def test_the_demonstration_ships_exact_copies() -> None:
    texts = resources.files("bursar.demo").joinpath("texts")
    copies = [one for one in texts.iterdir() if one.name.endswith(".txt")]
    assert copies
    for copy in copies:
        assert copy.read_bytes() == (EXAMPLES / copy.name).read_bytes()


def test_the_demonstration_charges_list_prices() -> None:
    card = tomllib.loads((ROOT / "sidecar" / "rates.toml").read_text(encoding="utf-8"))
    listed = {model["name"]: model for model in card["models"]}
    config = resources.files("bursar.demo").joinpath("config.toml").read_text(encoding="utf-8")
    for model in tomllib.loads(config)["rates"]["models"]:
        assert model == {key: listed[model["name"]][key] for key in model}
