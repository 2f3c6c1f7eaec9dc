"""The pages that people read: their code blocks, their links and their anchors."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "sidecar/docs"
README: Final = ROOT / "README.md"
_FENCE: Final = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(page: Path, language: str, containing: str) -> str:
    """The only block of a language with these words."""
    [found] = [one for one in blocks(page, language) if containing in one]
    return found


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without their heads."""
    text = page.read_text(encoding="utf-8")
    part = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    part = re.split(r"^#+ ", part, flags=re.MULTILINE)[0]
    found = re.findall(r"^\|(.*)\|$", part, re.MULTILINE)
    cells = [[one.strip() for one in re.split(r"(?<!\\)\|", line)] for line in found]
    return [row for at, row in enumerate(cells) if not _is_head(cells, at)]


def _is_head(cells: list[list[str]], at: int) -> bool:
    return any(set(row[0]) == {"-"} for row in cells[at : at + 2])


def links(page: Path) -> Iterator[str]:
    """What a page links to."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> list[str]:
    """The anchors that the headings of a page get, in order."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
