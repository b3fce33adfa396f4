"""What comes while the encoder works becomes one call; nobody waits for a call to fill."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rematch_ray.data.item import Item, Part
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, NotReadyError, OverloadedError
from rematch_ray.serve.gathering import SHORT_TEXT, GatheringEncoder, ToEncode


class SlowEncoder:
    """Takes calls down; each lasts until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.alone: list[str] = []
        self.gates: list[asyncio.Future[None]] = []

    async def encode(self, item: Item, instruction: str | None, side: str) -> EncodedQuery:
        self.alone.append(item.text)
        return encoded(item.text)

    async def encode_many(self, asked: Sequence[ToEncode]) -> list[EncodedQuery | UserError]:
        self.calls.append([one.item.text for one in asked])
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate
        return [
            UserError("broken") if one.item.text == "broken" else encoded(one.item.text)
            for one in asked
        ]

    async def let_go(self, number: int) -> None:
        self.gates[number].set_result(None)
        await settled()


def encoded(text: str) -> EncodedQuery:
    return EncodedQuery(np.zeros((1, 1, 1), np.float32), None, instruction=text)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def gathering(encoder: Any, **settings: int) -> GatheringEncoder:
    return GatheringEncoder(encoder, **({"most": 8, "replicas": 1, "most_waiting": 64} | settings))


async def ask(encoder: GatheringEncoder, *texts: str) -> list[asyncio.Task[EncodedQuery]]:
    tasks = [asyncio.ensure_future(encoder.encode(Item.of(text), None, "query")) for text in texts]
    await settled()
    return tasks


async def test_one_text_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    slow = SlowEncoder()
    tasks = await ask(gathering(slow), "a", "b", "c")
    assert slow.calls == [["a"]]
    await slow.let_go(0)
    assert slow.calls == [["a"], ["b", "c"]]
    await slow.let_go(1)
    assert [(await task).instruction for task in tasks] == ["a", "b", "c"]


async def test_each_replica_has_a_call_and_a_second_where_half_a_call_waits() -> None:
    slow = SlowEncoder()
    encoder = gathering(slow, replicas=2)
    tasks = await ask(encoder, *"abcde")
    assert slow.calls == [["a"], ["b"]]
    tasks += await ask(encoder, "f")
    assert slow.calls == [["a"], ["b"], ["c", "d", "e", "f"]]
    await slow.let_go(2)
    assert (await tasks[5]).instruction == "f"
    assert not tasks[0].done()
    await slow.let_go(0)
    await slow.let_go(1)
    assert all(task.done() for task in tasks)


async def test_a_call_holds_no_more_than_it_may() -> None:
    slow = SlowEncoder()
    tasks = await ask(gathering(slow, most=3), *"abcdefgh")
    await slow.let_go(0)
    assert max(len(call) for call in slow.calls) == 3
    while not all(task.done() for task in tasks):
        for gate in slow.gates:
            if not gate.done():
                gate.set_result(None)
        await settled()
    assert "".join(text for call in slow.calls for text in call) == "abcdefgh"


async def test_a_text_that_cannot_be_read_fails_alone() -> None:
    slow = SlowEncoder()
    tasks = await ask(gathering(slow), "a", "b", "broken", "c")
    await slow.let_go(0)
    await slow.let_go(1)
    assert [(await tasks[at]).instruction for at in (0, 1, 3)] == ["a", "b", "c"]
    with pytest.raises(UserError, match="broken"):
        await tasks[2]


async def test_where_the_call_fails_each_of_its_texts_hears_of_it_and_the_next_call_is_made() -> (
    None
):
    slow = SlowEncoder()
    encoder = gathering(slow)
    tasks = await ask(encoder, "a", "b", "c")
    await slow.let_go(0)
    tasks += await ask(encoder, "d")
    slow.gates[1].set_exception(NotReadyError("the encoder was lost"))
    await settled()
    for task in tasks[1:3]:
        with pytest.raises(NotReadyError, match="lost"):
            await task
    await slow.let_go(2)
    assert (await tasks[3]).instruction == "d"


async def test_who_has_gone_is_not_encoded() -> None:
    slow = SlowEncoder()
    tasks = await ask(gathering(slow), "a", "b", "c")
    tasks[1].cancel()
    await slow.let_go(0)
    assert slow.calls == [["a"], ["c"]]
    await slow.let_go(1)
    assert (await tasks[2]).instruction == "c"


async def test_who_goes_while_it_is_encoded_harms_no_other() -> None:
    slow = SlowEncoder()
    tasks = await ask(gathering(slow), "a", "b", "c")
    await slow.let_go(0)
    tasks[1].cancel()
    await slow.let_go(1)
    assert (await tasks[2]).instruction == "c"


async def test_one_too_many_is_refused() -> None:
    slow = SlowEncoder()
    encoder = gathering(slow, most_waiting=2)
    tasks = await ask(encoder, "a", "b", "c", "d")
    with pytest.raises(OverloadedError, match="queue is full"):
        await tasks[3]
    assert not any(task.done() for task in tasks[:3])


async def test_who_goes_while_it_waits_makes_room_at_once() -> None:
    slow = SlowEncoder()
    encoder = gathering(slow, most_waiting=2)
    tasks = await ask(encoder, "a", "b", "c")
    for gone in tasks[1:]:
        gone.cancel()
    await settled()
    tasks += await ask(encoder, "d", "e", "f")
    with pytest.raises(OverloadedError, match="queue is full"):
        await tasks[5]
    await slow.let_go(0)
    assert slow.calls == [["a"], ["d", "e"]]


async def test_images_and_long_texts_go_alone() -> None:
    slow = SlowEncoder()
    encoder = gathering(slow)
    await ask(encoder, "a", "b")
    long = "x" * (SHORT_TEXT + 1)
    picture = Item(id="p", parts=(Part(kind="image", image=b"..."),))
    await asyncio.gather(
        encoder.encode(Item.of(long), None, "query"), encoder.encode(picture, None, "query")
    )
    assert slow.alone == [long, ""]
    assert slow.calls == [["a"]]


async def test_an_instruction_makes_a_text_long() -> None:
    slow = SlowEncoder()
    encoder = gathering(slow)
    task = asyncio.ensure_future(encoder.encode(Item.of("a"), "x" * SHORT_TEXT, "query"))
    await settled()
    assert (slow.alone, slow.calls) == (["a"], [])
    await task
    assert ToEncode(Item.of("a"), "x" * (SHORT_TEXT - 1), "document").is_short
    assert not ToEncode(Item.of("a"), "x" * SHORT_TEXT, "document").is_short
