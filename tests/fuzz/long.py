"""Fuzzes one target for some seconds: `python tests/fuzz/long.py TARGET SECONDS`.

Guided by coverage where Atheris can be imported (`pip install atheris`), else as `test_fuzz.py`
does it. What is new is kept in `target/fuzz/python/`, what fails is written there by libFuzzer.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main(name: str, seconds: str) -> int:
    """Runs it; returns the exit code of whatever has run."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import atheris
    except ImportError:
        print("Atheris is not installed: not guided by coverage", flush=True)
        test = [sys.executable, "-m", "pytest", "-q", "tests/fuzz/test_fuzz.py", "-k", f"[{name}]"]
        return subprocess.run(
            test, check=False, cwd=ROOT, env=os.environ | {"BURSAR_FUZZ_SECONDS": seconds}
        ).returncode
    with atheris.instrument_imports(include=["bursar", "tomllib", "csv"]):
        from support.fuzz import CORPUS, TARGETS
    found = ROOT / "target" / "fuzz" / "python" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={found}/failed-"]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
