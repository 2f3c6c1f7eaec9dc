"""Asks PyPI for known vulnerabilities of what a lock file pins; `make audit` runs it.

Exit code 1: there are some. Where the index does not tell, that is said, and never taken for none.
"""

import json
import subprocess
import sys
from pathlib import Path


def main(lock: str) -> int:
    """Audits a lock file; returns the exit code."""
    program = Path(sys.executable).parent / "pip-audit"
    options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "-f", "json"]
    run = subprocess.run(  # noqa: S603 -- our own program and options
        [program, "-r", lock, *options], check=False, capture_output=True, text=True
    )
    try:
        found = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"skipped: advisories on {lock}: {run.stderr.strip()[-300:]}")
        return 0
    asked = [one for one in found if "skip_reason" not in one]
    bad = [one for one in asked if one["vulns"]]
    for one in bad:
        names = ", ".join(each["id"] for each in one["vulns"])
        print(f"{lock}: {one['name']} {one['version']}: {names}")
    if len(asked) < len(found):
        rest = len(found) - len(asked)
        print(
            f"skipped: {rest} of {len(found)} packages of {lock}: the index tells nothing of them"
        )
    if asked:
        print(f"{lock}: {len(bad)} of {len(asked)} packages have known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
