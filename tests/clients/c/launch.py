"""Reserves, and becomes a program that debits by a lease: the same process, so the same owner.

`launch.py TARGET ACCOUNT TOKENS PROGRAM SOCKET [ARGUMENT ...]` runs
`PROGRAM SOCKET RESERVATION [ARGUMENT ...]`.
"""

import os
import sys

import bursar


def main(target: str, account: str, tokens: str, program: str, socket: str, *rest: str) -> None:
    """Reserves; returns only if it fails."""
    client = bursar.connect(target)  # left open: the reservation has to outlive this
    reservation = client.reserve(account, tokens=int(tokens))
    os.execv(program, [program, socket, reservation.id, *rest])  # noqa: S606 -- what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])
