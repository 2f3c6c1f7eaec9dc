"""Writes what the licences of linked crates ask to be handed on: `python requirements/notices.py`.

A crate that may be used by Apache-2.0, which is Bursar's own licence, is named and needs no text
beside `LICENSE`; of the others the texts are taken from their sources, each once. One that is under
MIT and brings no text is given it; exits with 1 and a reason where another brings none.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
NOTICES: Final = ROOT / "rust/py/THIRD-PARTY-LICENSES.txt"
_TARGET: Final = "x86_64-unknown-linux-gnu"
_TEXTS: Final = re.compile(r"(licen[cs]e|copying|notice|unlicense)", re.IGNORECASE)
_HEAD: Final = """\
What is linked into bursar/_core.abi3.so, and by which licence. LICENSE is the text of Apache-2.0;
the other texts follow. Made by requirements/notices.py.
"""
_MIT: Final = """\
MIT License

Copyright (c) the authors of {name} ({repository})

Permission is hereby granted, free of charge, to any person obtaining a copy of this software
and associated documentation files (the "Software"), to deal in the Software without
restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def _cargo(*arguments: str) -> str:
    ran = subprocess.run(  # noqa: S603 -- our own options
        ["cargo", *arguments, "--locked"],  # noqa: S607 -- as rustup puts it on PATH
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ran.stdout


def linked() -> list[dict[str, Any]]:
    """The packages of others that are in the wheel, as `cargo metadata` describes them."""
    tree = ("tree", "--package=bursar-py", "--edges=normal", f"--target={_TARGET}", "--prefix=none")
    names = {tuple(line.split()[:2]) for line in _cargo(*tree, "--format={p}").splitlines() if line}
    described = json.loads(
        _cargo("metadata", "--format-version=1", f"--filter-platform={_TARGET}")
    )["packages"]
    own = {(one["name"], f"v{one['version']}"): one for one in described if one["source"]}
    return [own[name] for name in sorted(names & own.keys())]


def chosen(expression: str) -> str:
    """The licence by which it is used: Bursar's own where it may be."""
    alternatives = re.split(r" OR |\s*/\s*", expression)
    return "Apache-2.0" if "Apache-2.0" in alternatives else expression


def texts(package: dict[str, Any]) -> list[str]:
    """The texts that it brings, those of what it bundles as well."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(file for file in folder.rglob("*") if _TEXTS.match(file.name) and file.is_file())
    found = [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]
    if not found and package["license"] == "MIT":
        return [_MIT.format_map(package)]
    return found


def notices() -> str:
    """The whole file."""
    lines, said = [_HEAD], defaultdict(set)
    for package in linked():
        name = f"{package['name']} {package['version']}"
        licence = chosen(package["license"] or "")
        lines.append(f"{name}: {licence}")
        if licence == "Apache-2.0":
            continue
        if not (found := texts(package)):
            sys.exit(f"{name} ({licence}) brings no text of its licence")
        for text in found:
            said[text].add(name)
    for text, names in sorted(said.items(), key=lambda one: sorted(one[1])):
        lines.append(f"\n{'-' * 80}\n{', '.join(sorted(names))}\n\n{text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    NOTICES.write_text(notices(), encoding="utf-8")
