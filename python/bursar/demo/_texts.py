"""The documents that the agents read, and what they answer: a summary made of their sentences."""

import re
from collections import Counter
from importlib import resources
from typing import Final

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'_]?[A-Z])")
_WORD: Final = re.compile(r"[a-z]+")
_WORD_LENGTH_MIN: Final = 4  # shorter words join sentences, they do not say what these are about
_SENTENCE_LENGTH: Final = (60, 420)


def load(name: str) -> str:
    """Reads one of the documents."""
    return resources.files("bursar.demo").joinpath("texts", f"{name}.txt").read_text("utf-8")


def chapter(text: str, number: int) -> str:
    """One chapter of a novel, its heading included."""
    parts = re.split(r"(?m)^(?=Chapter \d+$)", text)
    return parts[number]


def summary(text: str, *, sentences: int) -> str:
    """The sentences whose words are the most frequent in the text, in the order of the text."""
    paragraphs = re.split(r"\n\s*\n", text)
    found = [
        sentence.strip()
        for paragraph in paragraphs
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split()))
    ]
    low, high = _SENTENCE_LENGTH
    fitting = list(dict.fromkeys(one for one in found if low <= len(one) <= high))
    frequency = Counter(word for one in fitting for word in _words(one))
    ranked = sorted(fitting, key=lambda one: _score(one, frequency), reverse=True)
    chosen = set(ranked[:sentences])
    return " ".join(one for one in fitting if one in chosen)


def _words(sentence: str) -> list[str]:
    words = _WORD.findall(sentence.lower())
    return [word for word in words if len(word) >= _WORD_LENGTH_MIN]


def _score(sentence: str, frequency: Counter[str]) -> float:
    words = _words(sentence)
    return sum(frequency[word] for word in words) / (len(words) + 1)
