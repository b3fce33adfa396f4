"""Passes take the threads that the settings name; what is long is read off the event loop."""

import ctypes
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rematch_ray.data.item import Item
from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.encoder import Encoder, _pass_thread
from rematch_ray.serve.gathering import SHORT_TEXT, ToEncode


def openmp_threads() -> int:
    """How many threads a matrix product takes that starts in this thread."""
    # asking torch would set it: the library that torch has loaded is asked instead
    found = re.search(r"\S*/torch/lib/libgomp\S*", Path("/proc/self/maps").read_text())
    assert found is not None
    return int(ctypes.CDLL(found[0]).omp_get_max_threads())


@pytest.mark.parametrize("count", [1, 3])
def test_a_pass_takes_as_many_threads_as_it_is_given(count: int) -> None:
    before = torch.get_num_threads()
    try:
        with _pass_thread("test", count) as threads:
            assert threads.submit(openmp_threads).result() == count
        # what is set elsewhere does not hold there: that is why they are threads of their own
        torch.set_num_threads(count + 4)
        with ThreadPoolExecutor(1) as others:
            assert others.submit(openmp_threads).result() != count + 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "instruction", "default", "is_read_at_once"),
    [
        (5, 5, 0, True),
        (SHORT_TEXT + 1, 0, 0, False),
        (5, SHORT_TEXT, 0, False),
        (5, None, SHORT_TEXT, False),
        (5, None, 5, True),
    ],
)
async def test_a_short_text_with_a_long_instruction_is_not_read_on_the_event_loop(
    text: int, instruction: int | None, default: int, is_read_at_once: bool
) -> None:
    threads: list[threading.Thread] = []

    async def embed(pack: Any) -> list[EncodedQuery]:
        return [EncodedQuery(np.zeros((1, 1, 1), np.float32), None)]

    def instruction_of(asked: ToEncode) -> str:
        return "d" * default if asked.instruction is None else asked.instruction

    replica: Any = SimpleNamespace(
        _row=lambda asked: threads.append(threading.current_thread()),
        _embed=embed,
        _instruction=instruction_of,
    )
    given = None if instruction is None else "i" * instruction
    encoded = await Encoder.encode(replica, Item.of("x" * text), given, "document")
    assert (threads == [threading.current_thread()]) == is_read_at_once
    assert encoded.instruction == ("d" * default if given is None else given)
