"""How many tokens a text or a prompt has, counted in this process.

Two kinds of tokenizers count exactly: the encodings that are built in, and any Hugging Face
``tokenizer.json`` (the extra ``tokenizers``). Where neither is known, or where a provider adds what
nobody sees, the count is an estimate and says so; a reservation is made on the estimate, and the
provider's own usage settles it.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bursar import _core
from bursar._convert import invalid
from bursar._errors import from_core

__all__ = ["PromptTokens", "count_prompt_tokens", "count_tokens", "split_tokens"]

_ENCODINGS: Final = frozenset({"o200k_base", "cl100k_base"})
_ESTIMATING: Final = "o200k_base"
_TEXT_BYTES_MAX: Final = 4 * 1024 * 1024
_MARGIN: Final = 4  # a quarter, as the proxy's
_TOKENIZERS_MAX: Final = 8
_PIECE: Final = 512


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A count.

    Attributes:
        count: How many tokens.
        is_exact: Whether the model will see exactly so many; else it is an estimate.
        tokenizer: What counted: an encoding's name or a file.
    """

    count: int
    is_exact: bool
    tokenizer: str


def count_tokens(encoding: str, text: str) -> int:
    """Counts the tokens of a text.

    Args:
        encoding: ``o200k_base`` or ``cl100k_base``. For a model's name ask `Client.count_tokens`,
            which knows the rate card.
        text: At most 4 MiB of UTF-8.

    Raises:
        InvalidRequest: There is no such encoding, or the text is too long.
    """
    with _public_errors():
        return _core.count_tokens(encoding, text)


def split_tokens(encoding: str, text: str) -> list[bytes]:
    """Splits a text into the bytes of its tokens; a token may end inside a character.

    Arguments and errors as of `count_tokens`.
    """
    with _public_errors():
        return _core.split_tokens(encoding, text)


@contextmanager
def _public_errors() -> Iterator[None]:
    try:
        yield
    except _core.CoreError as raised:
        raise from_core(raised) from None
    except UnicodeEncodeError:
        raise invalid("half a surrogate pair is no text", field="text") from None


def count_prompt_tokens(
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    tokenizer: str | Path | None = None,
) -> PromptTokens:
    """Counts a prompt, as the proxy does.

    A text is counted exactly where the tokenizer is known. Of a chat, texts are counted, and 4
    tokens a message and 1,600 a picture, sound or file added: how a provider renders roles, tools
    and pictures is its own, so that is always an estimate. Where the tokenizer is not known, texts
    are taken for a quarter longer than another one counts them.

    Args:
        prompt: A text, or messages in the form of any of the chat interfaces; 4 MiB at most.
        tools: The tools that the call offers.
        tokenizer: An encoding (``o200k_base``, ``cl100k_base``) or the path of a
            ``tokenizer.json``; None: unknown.

    Raises:
        InvalidRequest: The prompt is too long or nested too deeply, or there is no such tokenizer.
        ImportError: A ``tokenizer.json`` needs the extra ``tokenizers``.
    """
    name = _ESTIMATING if tokenizer is None else str(tokenizer)
    if isinstance(prompt, str):
        texts, beside = [prompt], 0
    else:
        texts, beside, _ = _parts({"messages": prompt, "tools": tools})
    _check_length(*texts)
    counted = sum(_count(name, text) for text in texts)
    if tokenizer is None:
        counted += counted // _MARGIN
    is_exact = isinstance(prompt, str) and tokenizer is not None
    return PromptTokens(counted + beside, is_exact, name)


def _parts(call: Mapping[str, Any]) -> tuple[list[str], int, bool]:
    """The texts of a call, about how many tokens come with them, and whether there are media."""
    try:
        with _public_errors():
            return _core.prompt_parts(json.dumps(call, default=str))
    except RecursionError:
        raise invalid("nested deeper than 127", field="prompt") from None


def _check_length(*texts: str) -> None:
    if sum(len(text.encode(errors="replace")) for text in texts) > _TEXT_BYTES_MAX:
        raise invalid(f"at most {_TEXT_BYTES_MAX} bytes are counted at once", field="prompt")


def has_media(prompt: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a picture, a sound or a file in messages."""
    return _parts({"messages": prompt})[2]


def _count(tokenizer: str, text: str) -> int:
    if tokenizer in _ENCODINGS:
        return count_tokens(tokenizer, text)
    if not tokenizer.endswith(".json"):
        known = ", ".join(sorted(_ENCODINGS))
        message = f"{tokenizer!r}: write {known}, or the path of a tokenizer.json"
        raise invalid(message, field="tokenizer")
    return len(_load(tokenizer).encode(text).ids)


@functools.lru_cache(maxsize=_TOKENIZERS_MAX)
def _load(path: str) -> Any:  # noqa: ANN401 -- of an extra
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise invalid(f"{path}: there is no such file", field="tokenizer")
    found = Tokenizer.from_file(path)
    found.no_truncation()
    found.no_padding()
    return found


class GrowingText:
    """Counts a text that arrives in pieces: near to the count of the whole, in linear time.

    Pieces are counted with the few words before them, never alone: 2,000 tokens cut at random add
    up to 3,700.
    """

    def __init__(self, tokenizer: str | None = None) -> None:
        self._tokenizer = _ESTIMATING if tokenizer is None else tokenizer
        self._settled = 0
        self._tail = ""
        self.count = 0

    def add(self, piece: str) -> int:
        """Adds a piece; how many tokens more there are for it (0 if it continued one)."""
        self._tail += piece
        total = self._settled + _count(self._tokenizer, self._tail)
        if len(self._tail) > _PIECE:  # what lies far back is not changed by what comes
            self._settled, self._tail = total, ""
        new, self.count = max(0, total - self.count), max(total, self.count)
        return new
