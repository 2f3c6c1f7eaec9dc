"""Fuzz targets for what Python reads: each takes any bytes, and fails where something is wrong.

Two drivers run them: `tests/fuzz/test_fuzz.py` for a second each and always, and
`tests/fuzz/long.py` for as long as one likes, guided by coverage where Atheris is installed.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bursar.calibrate.labels import LabelsError, read_labels
from bursar.calibrate.runs import By
from bursar.daemon._explain import ConfigError
from bursar.daemon._rates import read_rates
from bursar.daemon.config import load_config
from bursar.watchdog import cgroups
from bursar.watchdog.attribution import container_of
from bursar.watchdog.journal import Journal
from bursar.watchdog.processes import parse_stat, parse_uid

__all__ = ["CORPUS", "TARGETS", "inputs", "mutate"]

CORPUS: Final = Path(__file__).resolve().parent.parent / "fuzz" / "corpus"
INPUT_BYTES_MAX: Final = 4096

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="bursar-fuzz-")
_WORDS: Final = (
    b"\0", b"\xff", b"\n", b"\r", b'"', b"'''", b"[[", b"[", b"]", b"{", b"= ", b"9" * 20, b"-1",
    b"1e999", b"nan", b"../", b"/", b"\\377", b")", b" ", b"\t", b"[" * 200, b"9" * 4400, b"0::/",
)  # fmt: skip


def _file(data: bytes) -> Path:
    path = Path(_FOLDER.name) / "input"
    path.write_bytes(data)
    return path


def config(data: bytes) -> None:
    """A configuration is one, or told of as wrong; one that is one is one for the core as well."""
    try:
        read = load_config(_file(data))
    except ConfigError as error:
        assert str(error)
        return
    assert read.to_core_json().startswith("{")


def rates(data: bytes) -> None:
    """A rates file is one, or told of as wrong."""
    try:
        models = read_rates(_file(data))
    except ConfigError as error:
        assert str(error)
        return
    assert all(model.to_core()["model"] == model.name for model in models)


def labels(data: bytes) -> None:
    """Labels are read, or told of as wrong."""
    for by in By:
        try:
            read = read_labels(_file(data), by)
        except LabelsError as error:
            assert str(error)
        else:
            assert all(key and isinstance(value, bool) for key, value in read.items())


def cgroup(data: bytes) -> None:
    """What the kernel says of groups names one below the root, or none."""
    text = data.decode("utf-8", "surrogateescape")
    path = cgroups.parse_group(text)
    assert not path or path.startswith("/")
    if path and (found := container_of(path)) is not None:
        assert len(found[1]) in {0, 64}  # none in a pod's own group
        assert found[1] in path
    mounted = cgroups._find_mount(text)
    assert mounted is None or isinstance(mounted, Path)


def proc(data: bytes) -> None:
    """What the kernel says of a process is read, or is nothing; a name changes nothing of it."""
    stat = parse_stat(7, data)
    assert stat is None or stat.pid == 7
    uid = parse_uid(data)
    assert uid is None or uid >= 0
    honest = b"7 (" + data[:64] + b") S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
    stat = parse_stat(7, honest)
    assert stat is not None
    assert (stat.state, stat.ppid, stat.start_ticks) == ("S", 1, 4711)


def journal(data: bytes) -> None:
    """Rows that are damaged are told of, and nothing else is lost by them."""
    body, _, extra = data.partition(b"\n")
    kept = Journal(None)
    try:
        database = kept._db
        database.execute("INSERT INTO jobs VALUES ('j', ?, CAST(? AS TEXT))", (body, extra))
        row = "(?, 'a', 'j', 0, ?, CAST(? AS TEXT))"
        database.execute(f"INSERT INTO incidents VALUES {row}", (1, body, extra))  # noqa: S608 -- the constant above
        assert len(list(kept.jobs())) + len(list(kept.open_cases())) + len(kept.unreadable) == 2
        assert len(list(kept.recent("b", -1))) <= 1
        assert len(kept.incidents("", "", None, 10)[0]) <= 1
    finally:
        kept.close()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (cgroup, config, journal, labels, proc, rates)
}


def inputs(name: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the inputs, changed in one to six places."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        end = rng.randint(at, min(len(data), at + 64))
        match rng.randrange(6):
            case 0:
                del data[at:end]
            case 1:
                data[at:at] = data[at:end]
            case 2:
                data[at:at] = rng.choice(_WORDS)
            case 3:
                other = rng.choice(seeds)
                start = rng.randint(0, len(other))
                data[at:end] = other[start : start + rng.randint(0, 64)]
            case 4:
                data[at:end] = bytes([rng.randrange(256)])
            case _ if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case _:
                pass
    return bytes(data[:INPUT_BYTES_MAX])
