"""`bursar backup` and `bursar restore`: copies of a store, made beside a running sidecar."""

from pathlib import Path

import click

from bursar.care import backup as care
from bursar.care.backup import BackupError, Manifest
from bursar.cli._output import echo_json, safe
from bursar.cli._shared import config_option, json_option
from bursar.daemon.config import load_config


@click.command(short_help="Copy the store, while the sidecar runs or not.")
@click.argument("backup", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--store", type=click.Path(path_type=Path), help="The store.  [default: as configured]"
)
@config_option
@json_option
def backup(backup: Path, *, store: Path | None, config_path: Path, as_json: bool) -> None:
    """Copy the store to the new folder DEST, with its tokens and the watchdog's journal.

    Run it on the sidecar's host, as its user; the sidecar goes on meanwhile. Every call that was
    answered before is in the copy. DEST is there once it is whole, verified and on the disk.
    """
    if store is None:
        path = load_config(config_path).store.path
        if path is None:
            raise BackupError("this sidecar keeps its ledger in memory only: [store] path is empty")
        store = Path(path)
    manifest = care.make(store, backup)
    _say(manifest, f"{backup}: made and verified", as_json=as_json)


@click.command(short_help="Put a copy of a store where none is.")
@click.argument("backup", type=click.Path(exists=True, path_type=Path))
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option("--check", "check_only", is_flag=True, help="Only verify BACKUP.")
@json_option
def restore(backup: Path, store: Path | None, *, check_only: bool, as_json: bool) -> None:
    """Make the store STORE out of BACKUP, which `bursar backup` made. Never replaces a store.

    What was spent after the backup is forgotten, and so are the limits, freezes and tokens since;
    what was held then is held again, and expires unless somebody goes on with it.
    """
    if check_only != (store is None):
        raise click.UsageError("name the STORE to make, or --check to make none")
    if store is None:
        _say(care.verify(backup), f"{backup}: whole", as_json=as_json)
        return
    _say(care.restore(backup, store), f"{store}: made out of {backup}", as_json=as_json)


def _say(manifest: Manifest, done: str, *, as_json: bool) -> None:
    if as_json:
        echo_json(manifest)
        return
    click.echo(safe(done))
    click.echo(f"made {manifest.made}; all up to record {manifest.sequence:,} of its log is in it")
