"""Counts of prompts: exact where they can be, honest where not, and linear on hostile input."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from support.daemon import new_seed

import bursar
from bursar.tokens import (
    GrowingText,
    PromptTokens,
    count_prompt_tokens,
    count_tokens,
    split_tokens,
)

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
]


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE, trained here."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat aaaa aaaaaaaa"] * 3, trainer)
    made.enable_truncation(5)  # a file may say so; a count must not follow it
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def test_a_text_is_exact_by_an_encoding_and_by_a_tokenizer_file(tokenizer_json: Path) -> None:
    from tokenizers import Tokenizer

    text = "the cat sat on the mat, " * 20
    counted = count_prompt_tokens(text, tokenizer="o200k_base")
    assert counted == PromptTokens(count_tokens("o200k_base", text), True, "o200k_base")
    own = Tokenizer.from_file(str(tokenizer_json))
    own.no_truncation()
    expected = PromptTokens(len(own.encode(text).ids), True, str(tokenizer_json))
    assert count_prompt_tokens(text, tokenizer=tokenizer_json) == expected


def test_what_is_not_known_is_called_an_estimate(tokenizer_json: Path) -> None:
    assert not count_prompt_tokens("some text").is_exact
    chat = count_prompt_tokens(MESSAGES, tokenizer=tokenizer_json)
    assert not chat.is_exact
    assert (
        chat.count > count_prompt_tokens("Be brief.What is this?", tokenizer=tokenizer_json).count
    )
    picture: dict[str, Any] = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "x" * 9999}}],
    }
    assert 1600 < count_prompt_tokens([picture]).count < 1650


def test_no_tokenizer_of_that_name_is_refused() -> None:
    with pytest.raises(bursar.InvalidRequest, match="cl100k_base, o200k_base, or the path"):
        count_prompt_tokens("x", tokenizer="gpt-9")
    with pytest.raises(bursar.InvalidRequest, match="no such file"):
        count_prompt_tokens("x", tokenizer="missing/tokenizer.json")


def test_too_much_and_too_deep_are_refused() -> None:
    with pytest.raises(bursar.BursarError, match="at most"):
        count_prompt_tokens("x" * (4 * 1024 * 1024 + 1))
    for depth in (200, 100_000):
        deep: object = "x"
        for _ in range(depth):
            deep = [deep]
        with pytest.raises(bursar.InvalidRequest, match="nested deeper"):
            count_prompt_tokens([{"role": "user", "content": deep}])


@pytest.mark.parametrize("letter", ["a", "é", " "])
@pytest.mark.parametrize("kind", ["o200k_base", "file"])
def test_a_megabyte_of_one_letter_takes_linear_time(
    tokenizer_json: Path, kind: str, letter: str
) -> None:
    tokenizer = tokenizer_json if kind == "file" else kind

    def seconds(count: int) -> float:
        text = letter * (count // len(letter.encode()))
        began = time.process_time()
        count_prompt_tokens(text, tokenizer=tokenizer)
        return time.process_time() - began

    seconds(1000)
    quarter = max(min(seconds(250_000) for _ in range(3)), 0.001)
    whole = min(seconds(1_000_000) for _ in range(2))
    assert whole < 12 * quarter, "quadratic would be 16 times"
    assert whole < 5


def test_pieces_cut_at_random_add_up_to_the_whole(project: Path) -> None:
    seed = new_seed()
    print(f"BURSAR_SEED={seed}")
    chance = random.Random(seed)
    text = (project / "examples/us-constitution.txt").read_text(encoding="utf-8")[:20_000]
    growing, at, added = GrowingText("o200k_base"), 0, 0
    while at < len(text):
        size = chance.randrange(1, 6)
        added += growing.add(text[at : at + size])
        at += size
    exact = count_tokens("o200k_base", text)
    assert added == growing.count
    assert abs(added - exact) <= exact * 0.02


def test_counts_are_plain_data() -> None:
    assert json.dumps(count_prompt_tokens(MESSAGES).count)


@pytest.mark.parametrize("ask", [count_tokens, split_tokens])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gpt-9", "hello"), ("o200k_base", "x" * (4 * 2**20 + 1)), ("o200k_base", "\ud800")],
    ids=["no such encoding", "too long", "half a surrogate pair"],
)
def test_what_cannot_be_counted_is_an_error_of_ours(ask: Any, encoding: str, text: str) -> None:
    with pytest.raises(bursar.InvalidRequest):
        ask(encoding, text)
