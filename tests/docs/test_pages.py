"""No page is stale, no link is dead: what is generated is as it would be made now."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.pages import DOCS, README, ROOT, anchors, block, links, rows

PAGES = [
    README,
    ROOT / "SECURITY.md",
    *sorted((ROOT / "proto").rglob("*.md")),
    *sorted((ROOT / "sidecar").rglob("*.md")),
    *sorted((ROOT / "tests/clients").glob("*.md")),
]
VARIABLE = re.compile(r"\bBURSAR_[A-Z_]+\b")


def test_the_generated_pages_are_as_they_would_be_made_now(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the extra dev")
    subprocess.run([sys.executable, DOCS / "generate.py", tmp_path], check=True)
    made = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.iterdir()}
    assert sorted(made) == ["api.md", "configuration.md"]
    stale = [name for name, text in made.items() if (DOCS / name).read_text("utf-8") != text]
    assert stale == [], "run sidecar/docs/generate.py"


def test_every_variable_of_the_environment_is_there() -> None:
    """Those that the Python package names, but for an example's own."""
    sources = (ROOT / "python/bursar").rglob("*.py")
    read = {name for path in sources for name in VARIABLE.findall(path.read_text("utf-8"))}
    told = VARIABLE.findall(
        " ".join(row[0] for row in rows(DOCS / "configuration.md", "Environment"))
    )
    assert set(told) == read - {"BURSAR_WEBHOOK_SECRET"}
    assert len(told) == len(set(told))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    """Not of files and not of anchors; addresses of other hosts are not asked."""
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_anchor_is_there_twice(page: Path) -> None:
    assert [one for one, count in Counter(anchors(page)).items() if count > 1] == []


def test_every_page_of_the_folder_is_reached_from_the_readme() -> None:
    named = {(README.parent / link).resolve() for link in links(README)}
    assert [page.name for page in DOCS.glob("*.md") if page not in named] == []


def test_the_example_of_the_concepts_has_the_figures_that_it_shows(tmp_path: Path) -> None:
    page = DOCS / "concepts.md"
    snippet = block(page, "python", "Commit 150")
    command = [sys.executable, "-c", snippet]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = block(page, "text", "Commit 150").splitlines()[1:]
    assert ran.stdout.splitlines() == shown


def test_the_verdicts_are_explained_one_by_one() -> None:
    from bursar import Verdict

    told = [row[0] for row in rows(DOCS / "concepts.md", "Verdicts")]
    assert told == [f"`{one.name}`" for one in Verdict]
