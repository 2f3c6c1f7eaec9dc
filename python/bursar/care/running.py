"""The doctor's look at the running sidecar: its sockets, its code and its descriptors."""

import os
import resource
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bursar.care.files import folder_of_socket
from bursar.care.findings import AS_ITS_USER, Finding, Outcome, Subject
from bursar.daemon._listen import TlsSection
from bursar.exceptions import AccessError, BursarError

__all__ = ["code", "descriptors", "sockets"]

_ANSWER_S: Final = 2.0
_OWN_DESCRIPTORS: Final = 128  # what the sidecar keeps for itself is about that
_NEARLY_ALL: Final = 0.8
_AWAY: Final = "see whether it runs and is not stopped; else restart it"
_RENEWED_S: Final = 3 * 86_400.0  # short-lived certificates are renewed a day or more before


def sockets(subject: Subject) -> Iterator[Finding]:
    """Whether the configured sockets are there, and a sidecar answers at them."""
    if subject.config is None:
        return
    server = subject.config.server
    if server.socket is not None:
        path = Path(server.socket)
        try:
            if path.parent.is_dir():
                yield folder_of_socket(path)
            yield _socket(subject, path, int(server.socket_mode, 8))
        except PermissionError:
            yield _out_of_reach(path)
    if server.tcp is not None:
        yield _answer("tcp", server.tcp) if server.tls is None else _tls(server.tcp, server.tls)


def _socket(subject: Subject, path: Path, mode: int) -> Finding:
    try:
        found = path.lstat()
    except FileNotFoundError:
        if subject.in_use_by is None:
            return Finding("socket", Outcome.OK, f"{path} is not there: no sidecar runs")
        detail = f"{path} is gone, while process {subject.in_use_by} has the store open"
        return Finding("socket", Outcome.BROKEN, detail, "restart the sidecar")
    if not stat.S_ISSOCK(found.st_mode):
        advice = "move it away: the sidecar does not start"
        return Finding("socket", Outcome.BROKEN, f"{path} is no socket", advice)
    if (unreachable := _connect(path)) is not None:
        return unreachable
    has = stat.S_IMODE(found.st_mode)
    if has & ~mode:
        detail = f"{path} has mode {has:04o}, wider than the configured {mode:04o}"
        return Finding("socket", Outcome.BROKEN, detail, f"chmod {mode:04o} {path}")
    return _answer("socket", f"unix:{path}")


def _connect(path: Path) -> Finding | None:
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(_ANSWER_S)
    try:
        with probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        advice = "start the sidecar, which replaces it"
        return Finding("socket", Outcome.WARN, f"{path} is stale: nobody listens on it", advice)
    except PermissionError:
        return _out_of_reach(path)
    except OSError as error:
        detail = f"{path} takes no connection: {error}"
        return Finding("socket", Outcome.BROKEN, detail, "restart the sidecar")
    return None


def _out_of_reach(path: Path) -> Finding:
    advice = f"join its group, or {AS_ITS_USER}"
    return Finding("socket", Outcome.WARN, f"{path} cannot be reached from here", advice)


def _answer(what: str, target: str) -> Finding:
    import bursar

    try:
        with bursar.connect(target, timeout_s=_ANSWER_S, attempts=1) as client:
            client.who_am_i()
    except AccessError:
        return Finding(what, Outcome.OK, f"a sidecar answers at {target}, and asks for a token")
    except BursarError as error:
        return Finding(what, Outcome.BROKEN, f"{target} does not answer: {error}", _AWAY)
    return Finding(what, Outcome.OK, f"a sidecar answers at {target}")


def _tls(address: str, section: TlsSection) -> Finding:
    """Whether what listens shows the configured certificate, and that one is good for a while."""
    host, _, port = address.rpartition(":")
    renew = f"renew {section.certificate}: the sidecar reads it again by itself"
    try:
        context = ssl.create_default_context(cafile=section.certificate)
        context.check_hostname = False  # names are for its clients, who come by other ones
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        place = (host.strip("[]"), int(port))
        with (
            socket.create_connection(place, timeout=_ANSWER_S) as plain,
            context.wrap_socket(plain) as shown,
        ):
            ends = str((shown.getpeercert() or {}).get("notAfter"))
    except ssl.SSLCertVerificationError as error:
        detail = f"{address} shows another certificate than {section.certificate}, or one that"
        detail = f"{detail} is not valid: {error.verify_message}"
        return Finding("tcp", Outcome.BROKEN, detail, f"see the sidecar's log, or {renew}")
    except OSError as error:
        return Finding("tcp", Outcome.BROKEN, f"no TLS at {address}: {error}", _AWAY)
    detail = f"a sidecar answers at {address} by TLS; its certificate is valid until {ends}"
    if ssl.cert_time_to_seconds(ends) - time.time() < _RENEWED_S:
        return Finding("tcp", Outcome.WARN, detail, renew)
    return Finding("tcp", Outcome.OK, detail)


def code(subject: Subject) -> Iterator[Finding]:
    """Whether the running sidecar is the release that is installed."""
    if subject.in_use_by is None:
        return
    from bursar import _core

    try:
        maps = Path(f"/proc/{subject.in_use_by}/maps").read_text(encoding="utf-8")
    except OSError as error:
        detail = f"process {subject.in_use_by} cannot be looked at: {error.strerror}"
        yield Finding("release", Outcome.WARN, detail, AS_ITS_USER)
        return
    here = Path(_core.__file__).stat()
    lines = [line.split(maxsplit=5) for line in maps.splitlines() if "/_core." in line]
    same = any(
        line[4] == str(here.st_ino)
        and [int(part, 16) for part in line[3].split(":")]
        == [os.major(here.st_dev), os.minor(here.st_dev)]
        for line in lines
    )
    if same:
        yield Finding("release", Outcome.OK, f"the sidecar runs what is installed: {_core.version}")
    elif lines:
        detail = f"the sidecar runs {lines[0][5]}, which is not what is installed here"
        advice = "restart it, or use the bursar command that belongs to it"
        yield Finding("release", Outcome.WARN, detail, advice)
    else:
        detail = (
            f"process {subject.in_use_by} has the store open, and is no sidecar of this release"
        )
        advice = "use the bursar command that belongs to it"
        yield Finding("release", Outcome.WARN, detail, advice)


def descriptors(subject: Subject) -> Iterator[Finding]:
    """Whether there are descriptors for the connections that are allowed."""
    if subject.config is None:
        return
    pid = subject.in_use_by
    try:
        limit = resource.prlimit(pid or 0, resource.RLIMIT_NOFILE)[1]
        used = len(list(Path(f"/proc/{pid or 'self'}/fd").iterdir()))
    except OSError as error:
        detail = f"those of process {pid} cannot be seen: {error.strerror}"
        yield Finding("descriptors", Outcome.WARN, detail, AS_ITS_USER)
        return
    wanted = subject.config.server.max_connections
    advice = "raise LimitNOFILE= of its unit (ulimit -n), or lower server.max_connections"
    if limit == resource.RLIM_INFINITY:
        yield Finding("descriptors", Outcome.OK, "not limited")
    elif pid and used > limit * _NEARLY_ALL:
        detail = f"{used:,} of {limit:,} are in use: soon no connection is taken"
        yield Finding("descriptors", Outcome.BROKEN, detail, advice)
    elif (limit - _OWN_DESCRIPTORS) // 2 < wanted:
        room = max(0, (limit - _OWN_DESCRIPTORS) // 2)
        detail = f"{limit:,} are enough for {room:,} connections; {wanted:,} are allowed"
        yield Finding("descriptors", Outcome.WARN, detail, advice)
    else:
        yield Finding("descriptors", Outcome.OK, f"{limit:,}, for {wanted:,} connections")
