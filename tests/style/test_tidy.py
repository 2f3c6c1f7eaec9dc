"""Small by measure: line, file and function lengths, and paths that only exist on one machine.

Nothing may grow past these lines. An exception is listed with its reason, and goes when it is no
longer needed.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Proto and Rust: comments a little over 100 columns. The numbers may only go down.
COLUMNS_MAX = {".py": 100, ".pyi": 100, ".proto": 106, ".rs": 104}
PRAGMA = re.compile(r"  # (?:noqa|type: ignore|fmt:).*")  # for linters; it cannot be wrapped
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

SOURCES = {".py", ".pyi", ".rs", ".proto"}
TEXTS = SOURCES | {".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".cfg", ".txt", ".service"}

GENERATED = ("python/bursar/v1/",)  # protoc owns their layout
LONG_FILES = {  # path: why it is one file
    "proto/bursar/v1/ledger.proto": "a service and its messages are one file",
}
FOREIGN_PATHS = ("/" + "work/", "/" + "root/", "/" + "home/")


def tracked(project: Path) -> list[Path]:
    """The files that git tracks or would track; all files below where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=project, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    names = {name for name in listed.stdout.decode().split("\0") if name}
    return [project / name for name in sorted(names) if (project / name).is_file()]


@pytest.fixture(scope="module")
def texts(project: Path) -> dict[str, str]:
    """Path → content of every text file that people write."""
    return {
        path.relative_to(project).as_posix(): path.read_text(encoding="utf-8")
        for path in tracked(project)
        if path.suffix in TEXTS or path.name in {"Makefile", "Dockerfile"}
    }


def written(texts: dict[str, str], suffixes: set[str] = SOURCES) -> Iterator[tuple[str, str]]:
    """The sources that people write."""
    for name, text in texts.items():
        if Path(name).suffix in suffixes and not name.startswith(GENERATED):
            yield name, text


def test_no_line_is_too_long(texts: dict[str, str]) -> None:
    long = [
        f"{name}:{number}: {len(line)} columns"
        for name, text in written(texts)
        for number, line in enumerate(text.splitlines(), start=1)
        if len(PRAGMA.sub("", line)) > COLUMNS_MAX[Path(name).suffix] and "://" not in line
    ]
    assert long == []


def test_no_file_is_too_long(texts: dict[str, str]) -> None:
    lengths = {name: text.count("\n") for name, text in written(texts)}
    too_long = {name for name, count in lengths.items() if count > FILE_LINES_MAX}
    assert too_long - set(LONG_FILES) == set(), "split them"
    assert set(LONG_FILES) - too_long == set(), "these are short enough now; unlist them"


def test_no_python_function_is_too_long(texts: dict[str, str]) -> None:
    too_long = []
    for name, text in written(texts, {".py"}):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES_MAX:
                    too_long.append(f"{name}:{node.lineno}: {node.name} has {count} lines")
    assert too_long == []


def test_no_file_names_a_path_of_one_machine(texts: dict[str, str]) -> None:
    found = [
        f"{name}:{number}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if any(_names_path(line, path) for path in FOREIGN_PATHS)
    ]
    assert found == []


def _names_path(line: str, path: str) -> bool:
    """Whether an absolute path begins in the line; a longer path or an address may contain it."""
    at = line.find(path)
    while at >= 0:
        if at == 0 or not (line[at - 1].isalnum() or line[at - 1] in "_.-/*"):
            return True
        at = line.find(path, at + 1)
    return False


def test_every_file_ends_in_a_newline_and_has_no_trailing_spaces(texts: dict[str, str]) -> None:
    untidy = [
        name
        for name, text in written(texts)
        if (text and not text.endswith("\n"))
        or any(line != line.rstrip() for line in text.splitlines())
    ]
    assert untidy == []


def test_every_python_module_opens_with_its_contract(texts: dict[str, str]) -> None:
    missing = [
        name for name, text in written(texts, {".py"}) if not ast.get_docstring(ast.parse(text))
    ]
    assert missing == []
