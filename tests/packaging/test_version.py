"""There is one version, and everything that names it agrees."""

import re
import tomllib
from pathlib import Path

import bursar


def test_everything_that_names_the_version_agrees(project: Path) -> None:
    with (project / "Cargo.toml").open("rb") as file:
        version = tomllib.load(file)["workspace"]["package"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), "Cargo and PyPI write only these alike"
    with (project / "pyproject.toml").open("rb") as file:
        named = {"pyproject.toml": tomllib.load(file)["project"]["version"]}
    with (project / "Cargo.lock").open("rb") as file:
        ours = [one for one in tomllib.load(file)["package"] if one["name"].startswith("bursar-")]
    named |= {f"Cargo.lock: {one['name']}": one["version"] for one in ours}
    for file_path in (project / "sidecar/kubernetes").rglob("kustomization.yaml"):
        for tag in re.findall(r"newTag: (\S+)", file_path.read_text(encoding="utf-8")):
            named[str(file_path.relative_to(project))] = tag
    named["bursar.__version__"] = bursar.__version__
    changes = (project / "sidecar/CHANGELOG.md").read_text(encoding="utf-8")
    named["the first heading of CHANGELOG.md"] = re.findall(r"^## (\d\S*)", changes, re.MULTILINE)[
        0
    ]
    assert {where: one for where, one in named.items() if one != version} == {}
