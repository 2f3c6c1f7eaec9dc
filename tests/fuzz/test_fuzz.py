"""Every fuzz target of Python on all inputs that are kept, and on changes of them for a second.

The seed is printed; BURSAR_SEED plays a run again, BURSAR_FUZZ_SECONDS makes it longer.
"""

import os
import random
import time
from collections.abc import Callable

import pytest
from support.daemon import new_seed
from support.fuzz import CORPUS, TARGETS, inputs, mutate

SECONDS = float(os.environ.get("BURSAR_FUZZ_SECONDS", "1"))


def run(target: Callable[[bytes], None], data: bytes) -> None:
    try:
        target(data)
    except BaseException:
        print(f"the input: {data!r}")
        raise


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_the_bytes_are_what_has_to_hold_holds(name: str) -> None:
    target, kept = TARGETS[name], inputs(name)
    for data in (b"", *kept):
        run(target, data)
    rng = random.Random(new_seed())
    deadline = time.monotonic() + SECONDS
    count = 0
    while time.monotonic() < deadline:
        run(target, mutate(kept, rng))
        count += 1
    print(f"{name}: {count} inputs")


def test_each_target_has_a_corpus_and_each_corpus_a_target() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)


def test_a_target_that_is_wrong_is_found_out() -> None:
    rng = random.Random(1)
    seeds = [b'[store]\npath = "x"\n']
    assert any(b"[[" in mutate(seeds, rng) for _ in range(2_000))
