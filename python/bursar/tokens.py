"""Exact tokens of a text, counted in this process by the built-in tokenizers."""

from bursar import _core

__all__ = ["count_tokens", "split_tokens"]


def count_tokens(encoding: str, text: str) -> int:
    """Counts the tokens of a text.

    Args:
        encoding: ``o200k_base`` or ``cl100k_base``. For a model's name ask `Client.count_tokens`,
            which knows the rate card.
        text: At most 4 MiB of UTF-8.
    """
    return _core.count_tokens(encoding, text)


def split_tokens(encoding: str, text: str) -> list[bytes]:
    """Splits a text into the bytes of its tokens; a token may end inside a character."""
    return _core.split_tokens(encoding, text)
