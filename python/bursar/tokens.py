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
_DEPTH_MAX: Final = 32
_PER_MESSAGE: Final = 4
_PER_MEDIUM: Final = 1024
_MEDIA: Final = frozenset(
    {"image", "image_url", "input_image", "input_audio", "audio", "file", "input_file", "document"}
)
_TOKENIZERS_MAX: Final = 8
_MEDIUM: Final = object()
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
    prompt: str | Sequence[Mapping[str, Any]], *, tokenizer: str | Path | None = None
) -> PromptTokens:
    """Counts a prompt.

    A text is counted exactly where the tokenizer is known. Of a chat, texts are counted and 4
    tokens a message added: how a provider renders roles, tools and images is its own, so that is
    always an estimate.

    Args:
        prompt: A text, or messages in the form of any of the chat interfaces; 4 MiB at most.
        tokenizer: An encoding (``o200k_base``, ``cl100k_base``) or the path of a
            ``tokenizer.json``; None: unknown.

    Raises:
        InvalidRequest: The prompt is too long or nested too deeply, or there is no such tokenizer.
        ImportError: A ``tokenizer.json`` needs the extra ``tokenizers``.
    """
    name = _ESTIMATING if tokenizer is None else str(tokenizer)
    if isinstance(prompt, str):
        return PromptTokens(_count(name, prompt), tokenizer is not None, name)
    media = 0
    texts: list[str] = []
    for piece in _pieces(prompt, 0):
        if piece is None:
            media += 1
        else:
            texts.append(piece)
    count = _count(name, "\n".join(texts)) if texts else 0
    return PromptTokens(count + _PER_MESSAGE * len(prompt) + _PER_MEDIUM * media, False, name)


def has_media(prompt: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a picture, a sound or a file in messages."""
    return any(piece is None for piece in _pieces(prompt, 0))


def _count(tokenizer: str, text: str) -> int:
    if len(text.encode(errors="replace")) > _TEXT_BYTES_MAX:
        raise invalid(f"at most {_TEXT_BYTES_MAX} bytes are counted at once", field="prompt")
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


def _pieces(part: object, depth: int) -> Iterator[str | None]:
    """The texts of a prompt, in their order, and None for each picture, sound or file."""
    if depth > _DEPTH_MAX:
        raise invalid(f"nested deeper than {_DEPTH_MAX}", field="prompt")
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping):
        for value in _values(part):
            yield from _pieces(value, depth + 1)
    elif isinstance(part, Sequence):
        for one in part:
            yield from _pieces(one, depth + 1)
    elif part is _MEDIUM:
        yield None
    elif part is not None:
        yield json.dumps(part, default=str)


def _values(part: Mapping[str, Any]) -> Iterator[Any]:
    """What is to be counted of a mapping; a picture, sound or file is `_MEDIUM`."""
    if part.get("type") in _MEDIA:
        yield _MEDIUM
        return
    for key, value in part.items():
        if key not in {"id", "type"}:
            yield _MEDIUM if key in _MEDIA else value


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
