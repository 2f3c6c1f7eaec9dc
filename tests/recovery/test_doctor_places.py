"""`bursar doctor` on file systems as they are: nearly full, read-only, lost, layered and remote.

Each is a mount of the test's own, gone at its end.
"""

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from support.examined import examine, new_store
from support.places import mounted, small_disk
from support.remote import remote_folder

import bursar

MIB: Final = 2**20
KIB: Final = 2**10


def configured(folder: Path, store: Path, durability: str = "process") -> dict[str, Any]:
    """What the doctor says of a sidecar with that store."""
    config = folder / "doctor.toml"
    server = '[server]\nsocket = "bursar.sock"\n'
    section = f'[store]\npath = "{store}"\ndurability = "{durability}"\n'
    config.write_text(server + section, encoding="utf-8")
    return examine("--config", config)


def test_a_disk_with_less_than_a_gibibyte_is_said_to_be_low_and_how_low(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1100m") as disk:
        store = new_store(disk.path)
        told = examine(store)["disk"]
        assert (told["outcome"], told["detail"]) == ("ok", "1 GiB are left")
        disk.leave(1023 * MIB)
        told = examine(store)
        assert told["disk"]["outcome"] == "warn"
        assert told["disk"]["detail"] == f"{1023 * MIB:,} bytes are left"
        assert "entry_retention" in told["disk"]["advice"]
        assert told["exit"] == 0


def test_a_disk_with_less_than_a_mebibyte_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        store = new_store(disk.path)
        examine(store)  # SQLite makes what it reads by
        disk.leave(MIB)
        assert examine(store)["disk"]["outcome"] == "warn"
        disk.leave(MIB - 4 * KIB)
        told = examine(store)
        full = f"the file system is full: {MIB - 4 * KIB:,} bytes are left: nothing is granted"
        assert told["disk"]["outcome"] == "broken"
        assert told["disk"]["detail"].startswith(full)
        assert told["exit"] == 1


def test_a_disk_without_inodes_is_full_whatever_bytes_it_has(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2g,nr_inodes=50") as disk:
        store = new_store(disk.path)
        assert configured(tmp_path, store)["disk"]["outcome"] == "ok"
        with pytest.raises(OSError, match="No space left"):
            touch(disk.path, 50)
        told = configured(tmp_path, store)["disk"]
        assert told["outcome"] == "broken"
        assert told["detail"].startswith("the file system has no inodes left: nothing is granted")


def touch(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / str(number)).touch()


def test_a_disk_that_has_become_read_only_is_found(tmp_path: Path) -> None:
    """As the kernel makes one of which it could not write a part."""
    with small_disk(tmp_path / "disk", "2g") as disk:
        store = new_store(disk.path)
        remount = ["mount", "-o", "remount,ro", str(disk.path)]
        subprocess.run(remount, check=True, capture_output=True)
        found = configured(tmp_path, store)
        told = found["disk"]
        assert told["outcome"] == "broken"
        assert told["detail"].startswith("the file system is read-only: nothing is granted")
        assert "mount it to be written" in told["advice"]
        assert "restore" not in found["recovery"]["advice"], "a backup would not help"


def test_a_file_system_that_names_no_size_is_not_taken_for_a_full_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "memory", "ramfs", "mode=700") as folder:
        store = new_store(folder)
        assert os.statvfs(folder).f_blocks == 0
        with bursar.open(store) as client:
            client.set_budget("acme", unit="tokens", limit=10)
            client.record("acme", tokens=1)
        told = configured(tmp_path, store, "memory")
        assert (told["disk"]["outcome"], told["file system"]["outcome"]) == ("ok", "ok")
        assert "does not say" in told["disk"]["detail"]


@pytest.mark.parametrize(
    ("durability", "outcome", "said"),
    [
        ("process", "warn", "a reboot loses the store, whatever durability = 'process' promises"),
        ("power", "broken", "a reboot loses the store, whatever durability = 'power' promises"),
        ("memory", "ok", ""),
    ],
)
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_file_system_in_memory_keeps_no_more_than_durability_memory_promises(
    tmp_path: Path, kind: str, durability: str, outcome: str, said: str
) -> None:
    with mounted(tmp_path / "memory", kind, "mode=700") as folder:
        told = configured(tmp_path, new_store(folder), durability)["file system"]
        detail = f"{kind}: {said}" if said else f"{kind}, durability {durability}"
        assert (told["outcome"], told["detail"]) == (outcome, detail)


def test_the_layer_of_a_container_is_told_apart_from_a_volume(tmp_path: Path) -> None:
    layers = [tmp_path / name for name in ("lower", "upper", "work")]
    for layer in layers:
        layer.mkdir()
    options = ",".join(f"{layer.name}dir={layer}" for layer in layers)
    with mounted(tmp_path / "container", "overlay", options) as folder:
        folder.chmod(0o700)
        store = new_store(folder)
        told = examine(store)["file system"]
        assert told["outcome"] == "warn"
        assert told["detail"] == "overlay: the store goes with the container"
        assert told["advice"] == "mount a volume for it"


def test_a_store_across_a_network_is_said_to_be(tmp_path: Path) -> None:
    with remote_folder(tmp_path / "far") as folder:
        found = configured(tmp_path, folder / "ledger.db", "power")
        told = found["file system"]
        assert told["outcome"] == "warn"
        assert told["detail"].startswith("fuse.sshfs: locks and syncs over a network")
        assert found["recovery"]["outcome"] == found["disk"]["outcome"] == "ok"


def test_a_disk_of_its_own_is_as_good_as_any_durability(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    command = ["mkfs.ext4", "-q", str(image)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except OSError as error:
        pytest.skip(f"no file system can be made here: {error}")
    with mounted(tmp_path / "disk", "ext4", "loop", str(image)) as folder:
        folder.chmod(0o700)
        told = configured(tmp_path, new_store(folder), "power")["file system"]
        assert (told["outcome"], told["detail"]) == ("ok", "ext4, durability power")


def test_a_mount_with_an_odd_name_does_not_keep_the_doctor_from_looking(tmp_path: Path) -> None:
    """Anybody may mount by FUSE, at a name of bytes that are no text or look like a line's end."""
    odd = tmp_path / os.fsdecode(b"\xff\r\xe2\x80\xa8")
    with (
        small_disk(tmp_path / "disk", "16m") as disk,
        mounted(odd, "none", "bind", str(disk.path)),
        mounted(tmp_path / "later", "ramfs", "mode=700"),
    ):
        told = examine(new_store(disk.path))["file system"]
        assert told["detail"].startswith("tmpfs: ")


def test_of_a_folder_that_is_not_there_yet_nothing_is_said_and_none_is_made(tmp_path: Path) -> None:
    found = configured(tmp_path, tmp_path / "later" / "ledger.db")
    assert not {"store folder", "disk", "file system"} & set(found)
    assert "the first start makes one" in found["recovery"]["detail"]
    assert not (tmp_path / "later").exists()
