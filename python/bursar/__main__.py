"""`bursar`, and `python -m bursar`: the command line, from the first of its imports on."""

import sys

__all__ = ["main"]

_INTERRUPTED = 130
"""As shells say it: 128 and SIGINT."""


def main() -> None:
    """Runs it; SIGINT while it is not up yet ends it without a word."""
    try:
        from bursar.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
