"""Writes a store to keep: what a release makes of some work, with what it says of it.

`PYTHONPATH=… python tests/upgrade/write_store.py ARCHIVE`, with the `bursar` of the release. It was
run once for each archive in `stores/`; they are never written again. The store is one that a
sidecar left as it was killed: part of it in SQLite, part of it in the log only. `said.json` is what
the same release says of it after its own recovery.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import bursar
from bursar import Advice, Threshold, Verdict
from bursar.testing import Sidecar

CONFIG: dict[str, Any] = {
    "accounts": [{"path": "**"}],
    "store": {"entry_retention": "3660d"},
    "reservations": {"max_ttl": "8784h"},
}
TTL_S = 366 * 86_400.0
ENDS = ("", "-wal", ".tokens", ".watchdog", ".watchdog-wal")
SOFT = (
    Threshold(500, Verdict.WARN, Advice(temperature=0.2)),
    Threshold(900, Verdict.DEGRADE, Advice(max_new_tokens=64, fallback_model="small")),
)


def said(client: bursar.Client, ids: list[str]) -> dict[str, Any]:
    """Everything that a client can read of it."""
    accounts = {
        one.path: {
            "frozen": one.frozen,
            "reason": one.freeze_reason,
            "balances": {
                f"{two.unit} {two.period}": [two.limit, two.held, two.spent, two.remaining]
                for two in one.balances
            },
        }
        for one in client.list_accounts("")
    }
    reservations = {}
    for name in ids:
        info = client.get_reservation(name)
        told = [info.account, dict(info.granted), dict(info.used), dict(info.spent)]
        reservations[name] = [info.state.value, *told, info.parent_reservation, info.model]
    entries = [
        [one.sequence, one.account, one.reservation, one.unit, one.kind, one.amount, one.model]
        for one in client.list_entries("")
    ]
    return {"accounts": accounts, "reservations": reservations, "entries": entries}


def work(client: bursar.Client, name: str) -> list[str]:
    """Reservations in every state, in windows of every kind."""
    account = f"acme/research/{name}"
    client.set_budget(account, unit="tokens", limit=10_000, thresholds=SOFT)
    client.set_budget(account, unit="usd_nanos", limit="5.00 USD", period="month@Europe/Berlin")
    client.set_budget(account, unit="vram_bytes", limit="8 GiB")
    amounts = {"tokens": 900, "usd_nanos": 1_000_000}
    labels = {"model": "m-1", "action": "test"}
    done = client.reserve(account, amounts=amounts, labels=labels, ttl_s=TTL_S)
    client.commit(done.id, actual={"tokens": 300, "usd_nanos": 2_500_000})
    debited = client.reserve(account, amounts={"tokens": 6_000}, ttl_s=TTL_S)
    client.debit(debited.id, used={"tokens": 5_250})
    parent = client.reserve(account, amounts={"tokens": 500}, ttl_s=TTL_S)
    child = client.reserve(
        f"{account}/step", amounts={"tokens": 200}, parent=parent.id, ttl_s=TTL_S / 2
    )
    released = client.reserve(account, amounts={"vram_bytes": 1 << 30}, ttl_s=TTL_S)
    client.release(released.id)
    memory = client.reserve(account, amounts={"vram_bytes": 2 << 30}, ttl_s=TTL_S)
    client.record(account, amounts={"tokens": 77, "gpu_ms": 5}, labels=labels)
    client.freeze(f"acme/{name}", reason="a test")
    time.sleep(0.3)  # what is debited is logged
    return [done.id, debited.id, parent.id, child.id, released.id, memory.id]


def main(archive: Path) -> None:
    """Writes the store and packs it."""
    folder = Path(tempfile.mkdtemp(prefix="bursar-"))
    sidecar = Sidecar(CONFIG, folder=folder)
    with sidecar, sidecar.client() as client:
        client.set_budget("acme", unit="tokens", limit=1_000_000, thresholds=SOFT)
        client.set_budget("acme", unit="tokens", limit=50_000, period="rolling:3600s")
        ids, secret = work(client, "imported"), ""
        len(list(client.list_entries("")))  # they are imported
        if hasattr(client, "tokens"):
            role = bursar.Role.OPERATOR
            secret = client.tokens.create("kept", role=role, ttl_s=10 * TTL_S).secret
        if hasattr(client, "register_process"):
            job = subprocess.Popen(["/bin/sleep", "20"])
            client.register_process("acme/job", pid=job.pid)
        lock = sqlite3.connect(folder / "ledger.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        ids += work(client, "logged")
        sidecar.kill9()
    lock.rollback()
    packed = Path(tempfile.mkdtemp(prefix="bursar-"))
    pick(folder, packed)
    lock.close()
    pick(packed, folder)
    with sidecar, sidecar.client() as client:
        text = json.dumps(said(client, ids) | {"secret": secret}, indent=1)
    (packed / "said.json").write_text(text, encoding="utf-8")
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(packed.iterdir()):
            tar.add(path, path.name)
    print(archive, archive.stat().st_size, "bytes")


def pick(source: Path, target: Path) -> None:
    """Copies what belongs to the store."""
    for path in target.glob("ledger.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in [f"ledger.db{end}" for end in ENDS]:
        if (source / name).exists():
            shutil.copy2(source / name, target / name)
    shutil.copytree(source / "ledger.db-log", target / "ledger.db-log")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
