"""`bursar doctor` finds what is really wrong with a sidecar, and nothing where nothing is."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.certificates import Authority
from support.daemon import Daemon
from support.examined import CONFIG, edit, findings, sidecar

import bursar
from bursar.care import host
from bursar.cli import cli

MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder of its own in it
OF_THE_MACHINE = {one.what for one in host.look()}
DEPENDS_ON_THE_MACHINE = {"file system", "disk"}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with sidecar() as running:
        yield running


def odd(daemon: Daemon) -> dict[str, str]:
    """What is not well of the sidecar; of the machine, others tell."""
    found = findings(daemon)
    code = found.pop("exit")
    here = OF_THE_MACHINE | DEPENDS_ON_THE_MACHINE
    wrong = {
        what: f"{one['outcome']}: {one['detail']}"
        for what, one in found.items()
        if one["outcome"] != "ok" and what not in here
    }
    assert all(one["advice"] for one in found.values() if one["outcome"] != "ok")
    if any(one.startswith("broken") for one in wrong.values()):
        assert code == 1
    return wrong


def test_nothing_is_found_where_nothing_is_wrong(daemon: Daemon) -> None:
    assert odd(daemon) == {}
    looked = findings(daemon)
    assert {"recovery", "database", "schema", "totals", "reservations", "tokens", "journal"} < set(
        looked
    )
    assert {"clock", "time zones", "socket", "release", "descriptors", "NVML"} < set(looked)
    assert "a sidecar answers" in looked["socket"]["detail"]
    daemon.kill9()
    assert set(odd(daemon)) == {"socket"}, "which is stale"
    daemon.start()
    daemon.terminate()
    assert odd(daemon) == {}, "at rest"


def test_a_store_under_load_is_looked_at_without_a_false_alarm(daemon: Daemon) -> None:
    script = (
        "import bursar, sys, time\n"
        "client, end = bursar.connect(sys.argv[1]), time.monotonic() + float(sys.argv[2])\n"
        "while time.monotonic() < end:\n"
        "    client.commit(client.reserve('acme/load', tokens=1).id, tokens=1)\n"
    )
    command = [sys.executable, "-c", script, daemon.target, "4"]
    with daemon.client() as client:
        client.set_budget("acme", unit="tokens", limit=2**40, period="day@Europe/Berlin")
    with subprocess.Popen(command) as load:
        looks = 0
        while load.poll() is None:
            assert odd(daemon) == {}
            looks += 1
        assert load.returncode == 0
    assert looks > 2


def scribble(store: Path) -> None:
    """Damages a page in the middle of the file."""
    with store.open("r+b") as file:
        file.seek(4096 * 6)
        file.write(b"\xa5" * 4096 * 3)


def flip(store: Path) -> None:
    """Damages a record of the log that was synced."""
    [segment] = (store.parent / "ledger.db-log").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[80] ^= 1
    segment.write_bytes(data)


def lose_log(store: Path) -> None:
    shutil.rmtree(store.parent / "ledger.db-log")


def widen(path: str, mode: int) -> Callable[[Path], None]:
    return lambda store: (store.parent / path).chmod(mode)


def write(path: str, text: str) -> Callable[[Path], None]:
    def run(store: Path) -> None:
        (store.parent / path).unlink(missing_ok=True)
        (store.parent / path).write_text(text, encoding="utf-8")
        (store.parent / path).chmod(0o600)

    return run


def webhook(mode: int | None) -> Callable[[Path], None]:
    """A webhook with a secret in a file of that mode, or in none."""

    def run(store: Path) -> None:
        hook = 'name = "x"\nurl = "https://127.0.0.1:1"\nsecret_file = "hook.secret"\n'
        text = f"{CONFIG}[[notify.webhooks]]\n{hook}"
        (store.parent / "doctor.toml").write_text(text, encoding="utf-8")
        if mode is not None:
            (store.parent / "hook.secret").write_text("0123456789abcdef" * 2, encoding="utf-8")
            (store.parent / "hook.secret").chmod(mode)

    return run


def ahead(store: Path) -> None:
    later_ms = time.time_ns() // 1_000_000 + 7_200_000
    edit(store, f"UPDATE meta SET ledger_time_ms = {later_ms}")  # noqa: S608 -- a number of ours


def someone_elses(store: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(store.parent / "ledger.db.tokens", 12345, -1)


@pytest.mark.parametrize(
    ("damage", "what", "said"),
    [
        (scribble, "recovery", "is malformed"),
        (flip, "recovery", "damaged where it was synced"),
        (lose_log, "recovery", "log is missing"),
        (lambda store: edit(store, "UPDATE windows SET spent = 21"), "totals", "entries say 20"),
        (
            lambda store: edit(store, "UPDATE entry SET amount = 71 WHERE amount = 70"),
            "reservations",
            "holds other amounts",
        ),
        (lambda store: edit(store, "PRAGMA user_version = 99"), "recovery", "version 99"),
        (lambda store: edit(store, "UPDATE meta SET ledger_time_ms = 1e15"), "clock", "broken"),
        (ahead, "clock", "before what the store has recorded"),
        (
            lambda store: edit(store, "UPDATE budgets SET time_zone = 'Mars/Olympus'"),
            "time zones",
            "Mars/Olympus",
        ),
        (write("ledger.db.tokens", "{"), "tokens", "cannot be understood"),
        (write("ledger.db.tokens", '{"version": 9, "tokens": []}'), "tokens", "version 9"),
        (write("ledger.db.watchdog", "nonsense" * 99), "journal", "cannot be read"),
        (
            lambda store: edit(store.with_name("ledger.db.watchdog"), "PRAGMA user_version = 9"),
            "journal",
            "version 9",
        ),
        (widen("ledger.db.tokens", 0o644), "store files", "warn: open to others"),
        (widen("ledger.db", 0o660), "store files", "broken: open to others"),
        (widen(".", 0o777), "store folder", "broken: anybody may replace"),
        (widen(".", 0o1777), "store folder", "warn: anybody may create"),
        (widen("doctor.toml", 0o646), "configuration", "anybody may change"),
        (webhook(0o644), "key file", "is open to others (0644)"),
        (webhook(None), "key file", "No such file"),
        (someone_elses, "owner", "ledger.db.tokens is user 12345's"),
        (write("doctor.toml", "[store]\npath = 7\n"), "configuration", "store.path"),
        (write("bursar.sock", "x"), "socket", "is no socket"),
    ],
)
def test_what_is_wrong_at_rest_is_found_with_what_to_do(
    daemon: Daemon, damage: Callable[[Path], object], what: str, said: str
) -> None:
    daemon.terminate()
    if damage in {flip, lose_log}:
        daemon.start()
        with daemon.client() as client:
            client.record("acme", tokens=1)
        time.sleep(0.2)  # it is synced
        daemon.kill9()
    damage(daemon.store_path)
    wrong = odd(daemon)
    assert what in wrong, wrong
    assert said in wrong[what]


def test_a_stopped_sidecar_a_lost_socket_and_a_wide_one_are_found(daemon: Daemon) -> None:
    with daemon.stopped():
        assert "does not answer" in odd(daemon)["socket"]
    daemon.socket_path.chmod(0o666)
    assert "wider than the configured 0600" in odd(daemon)["socket"]
    daemon.socket_path.unlink()
    assert "is gone, while process" in odd(daemon)["socket"]
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(daemon.socket_path))
    assert "stale" in odd(daemon)["socket"]
    assert stat.S_ISSOCK(daemon.socket_path.stat().st_mode), "it is left alone"


@pytest.mark.parametrize(
    ("days", "outcome", "said"),
    [(30, "ok", "valid until"), (1, "warn", "valid until"), (-1, "broken", "has expired")],
)
def test_a_listener_with_tls_is_asked_by_tls_and_its_certificate_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, outcome: str, said: str
) -> None:
    monkeypatch.setenv("BURSAR_TOKEN", "bursar_of-somebody-who-runs-this")
    pair = Authority(tmp_path).issue("sidecar", addresses=["127.0.0.1"], server=True, days=days)
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    with Daemon(server={"tcp": "127.0.0.1:0", "tls": tls}, access={"mode": "enforce"}) as daemon:
        [tcp] = re.findall(r"127\.0\.0\.1:\d+", daemon.log)
        lines = [
            f'tcp = "{tcp}"',
            f'tls = {{ certificate = "{pair.certificate}", key = "{pair.key}" }}',
        ]
        text = CONFIG.replace("[store]", "\n".join([*lines, "[store]"]))
        (daemon.folder / "doctor.toml").write_text(text, encoding="utf-8")
        told = findings(daemon)["tcp"]
        assert (told["outcome"], said in told["detail"]) == (outcome, True), told
        assert findings(daemon)["key file"]["outcome"] == "ok"
        daemon.terminate()
        assert findings(daemon)["tcp"]["outcome"] == "broken"


def test_a_sidecar_of_another_release_is_found(daemon: Daemon, tmp_path: Path) -> None:
    daemon.terminate()
    package = Path(bursar.__file__).parent
    shutil.copytree(package, tmp_path / "bursar")
    with (daemon.folder / "other.log").open("wb") as log:
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        with subprocess.Popen(daemon.command(), env=env, stdout=log, stderr=log) as other:
            try:
                deadline = time.monotonic() + 30
                while "release" not in (wrong := odd(daemon)) and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert str(tmp_path) in wrong["release"]
            finally:
                other.terminate()


def test_too_few_descriptors_are_found(daemon: Daemon) -> None:
    text = CONFIG.replace("max_connections = 100", "max_connections = 1_000_000")
    (daemon.folder / "doctor.toml").write_text(text, encoding="utf-8")
    if "descriptors" in findings(daemon) and os.sysconf("SC_OPEN_MAX") > 2_000_256:
        pytest.skip("this machine has enough for a million connections")
    assert "1,000,000 are allowed" in odd(daemon)["descriptors"]


def test_a_store_in_memory_and_one_that_is_not_there_yet_are_no_trouble(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["doctor", "--config", str(tmp_path / "missing.toml")])
    assert told.exit_code == 1
    assert "cannot be read" in told.stdout
    for text in ('path = ""', 'path = "ledger.db"'):
        config = tmp_path / "doctor.toml"
        server = '[server]\nsocket = "bursar.sock"\nmax_connections = 100\n'
        config.write_text(f"{server}[store]\n{text}\n", encoding="utf-8")
        told = CliRunner().invoke(cli, ["doctor", "--config", str(config), "--json"])
        assert "broken" not in told.stdout, told.stdout
    assert not list(tmp_path.glob("ledger.db*")), "it changes nothing"


def test_a_store_that_was_not_upgraded_yet_is_said_to_be_old(tmp_path: Path) -> None:
    bursar.open(tmp_path / "ledger.db").close()
    edit(tmp_path / "ledger.db", "PRAGMA user_version = 1")
    told = CliRunner().invoke(cli, ["doctor", str(tmp_path / "ledger.db")])
    assert "warn     schema: version 1; the next start brings it up to date" in told.stdout


@pytest.mark.skipif(not MEMORY.is_dir(), reason="needs a file system in memory")
def test_a_store_in_memory_that_promises_more_is_found() -> None:
    folder = MEMORY / f"bursar-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        bursar.open(folder / "ledger.db").close()
        told = CliRunner().invoke(cli, ["doctor", str(folder / "ledger.db")])
        assert "warn     file system: tmpfs: a reboot loses the store" in told.stdout
    finally:
        shutil.rmtree(folder)
