"""A shard in the process of its router: full queues, errors and the end."""

import asyncio
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import OverloadedError
from rematch_ray.serve.local_shard import HeldShard


class Held:
    """A shard whose searches end when they are told to."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.is_closed = False

    async def search(self, asked: Any) -> Any:
        await self.may_end.wait()
        if asked == "bad":
            raise UserError("no such budget")
        return f"found {asked}"

    async def payload(self, generation: str, name: str) -> Any:
        return {"asked": (generation, name)}

    def close(self) -> None:
        self.is_closed = True


def test_one_more_than_the_queue_holds_is_refused_and_the_others_are_answered() -> None:
    async def run() -> None:
        held = Held()
        shard = HeldShard(held, most=2)  # type: ignore[arg-type]
        first = [asyncio.create_task(shard.search(name)) for name in ("a", "bad")]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="queue of the index is full"):
            await shard.search("c")
        held.may_end.set()
        assert await first[0] == "found a"
        with pytest.raises(UserError, match="no such budget"):
            await first[1]
        # what failed has left its place too
        assert await asyncio.gather(shard.search("d"), shard.search("e")) == ["found d", "found e"]

    asyncio.run(run())


def test_other_questions_and_the_end_reach_the_shard() -> None:
    async def run() -> None:
        held = Held()
        shard = HeldShard(held, most=1)  # type: ignore[arg-type]
        assert await shard.ask("payload", "generation", "red") == {"asked": ("generation", "red")}
        shard.close()
        assert held.is_closed

    asyncio.run(run())
