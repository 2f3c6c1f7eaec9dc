"""The lock file of Python pins what pyproject.toml asks for; `make lock` makes it anew."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(.*(?:\n    --hash=\S+.*)*)", re.MULTILINE)


def test_everything_that_is_asked_for_is_pinned_by_hash(project: Path) -> None:
    lock = (project / "requirements" / "dev.txt").read_text(encoding="utf-8")
    found = PINNED.findall(lock)
    pins = {canonicalize_name(name): version for name, version, _ in found}
    with (project / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]
    for text in (*asked["dependencies"], *asked["optional-dependencies"]["dev"]):
        wanted = Requirement(text)
        version = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{text}, and {version} is pinned: make lock"
    tools = (project / "requirements" / "tools.txt").read_text(encoding="utf-8")
    of_tools = PINNED.findall(tools)
    assert of_tools
    assert all("--hash=sha256:" in rest for _, _, rest in found + of_tools)
