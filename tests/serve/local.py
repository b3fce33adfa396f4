"""Shards, encoder and coordinator in this process, as a router sees them over handles."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.index.build import build_index
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.serve.backend import EncodedQuery, NotReadyError
from rematch_ray.serve.follower import Follower
from rematch_ray.serve.router import Parts, Router
from rematch_ray.serve.shard import Shard
from rematch_ray.serve.wire import Asked, Found, Orders, RouterReport, State
from tests.index.made import GROUPS, queries, unit, write_embeddings

Payload = Mapping[str, Any]
WORDS = ["otter", "boat", "a red boat", "an otter in a red boat", "tea", "red tea", "boat boat"]


def embeddings(
    path: Path, count: int, seed: int, payloads: Sequence[Payload] | None = None, **options: Any
) -> Path:
    return write_embeddings(
        path,
        unit((count, 8, 16), seed),
        unit((count, 24), seed + 1),
        payloads=payloads,
        **options,
    )


def build(folder: Path, num_shards: int, count: int = 300) -> Path:
    """The same documents as an index of so many shards."""
    source = folder / "embeddings"
    if not source.exists():
        payloads = [
            {"group": GROUPS[n % 3], "number": n % 5, "text": WORDS[n % 7]} for n in range(count)
        ]
        embeddings(source, count, 1, payloads)
    out = folder / f"index-{num_shards}"
    if num_shards == 1:
        build_index(source, out)
    else:
        build_sharded(source, out, num_shards)
    return out


def query(number: int = 0) -> EncodedQuery:
    some = queries(number + 1)
    assert some.fused is not None
    return EncodedQuery(some.vectors[number:], some.fused[number:])


class LocalShard:
    """A `ShardClient` over a `Shard` of this process; counts calls, fails when told to."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.calls: list[str] = []
        self.asked: list[Any] = []
        self.failures: list[Exception] = []
        self.queue_ms: float | None = None

    async def search(self, asked: Asked) -> Found:
        return await self.ask("search", asked)

    async def ask(self, method: str, *values: Any) -> Any:
        self.calls.append(method)
        self.asked.append(values)
        if self.failures:
            raise self.failures.pop(0)
        return await getattr(self.shard, method)(*values)


class StubEncoder:
    """Knows one matching head: the odds of a document are `odds` of its place."""

    def __init__(self, odds: Callable[[int], float] = float) -> None:
        self.odds = odds
        self.matched = 0
        self.read: list[tuple[str, str, int]] = []

    async def encode(self, item: Any, instruction: str | None, side: str) -> EncodedQuery:
        return query()

    async def match(self, fused_query: Any, fused_documents: Any) -> Any:
        assert fused_query.shape == (1, fused_documents.shape[1])
        self.matched = len(fused_documents)
        return np.array([self.odds(place) for place in range(len(fused_documents))])

    async def match_raw(
        self, query: Any, instruction: Any, documents: Any, document_instruction: Any
    ) -> list[float | None]:
        self.read = [(item.id, item.text, len(item.images)) for item in documents]
        return [self.odds(place) for place in range(len(documents))]

    async def identity(self) -> Mapping[str, Any]:
        return {"digest": "d1" * 32, "name": "stub"}

    async def default_instruction(self) -> str:
        return "find it"


class StubCoordinator:
    """Gives the orders it was told to give; silent when told to be."""

    def __init__(self, orders: Orders | None = None) -> None:
        self.orders = orders or Orders()
        self.reports: list[RouterReport] = []
        self.is_silent = False

    async def exchange(self, report: RouterReport) -> Orders:
        if self.is_silent:
            raise NotReadyError("the coordinator does not answer")
        self.reports.append(report)
        return self.orders


class Mute:
    """Answers when it is let go; counts who gave up."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.may_answer = asyncio.Event()
        self.given_up = 0

    async def __call__(self, *values: Any) -> Any:
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await self.real(*values)


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def shards_of(index: Path, num_shards: int) -> list[LocalShard]:
    return [LocalShard(Shard(str(index), 2, number)) for number in range(num_shards)]


def router_over(shards: list[LocalShard], **options: Any) -> Router:
    parts = {name: options.pop(name) for name in ("coordinator", "writer") if name in options}
    encoder = options.pop("encoder", StubEncoder())
    return Router(Parts(encoder=encoder, shards=shards, **parts), **options)


def state(number: int) -> State:
    name = f"generation-{number:06}"
    return State(name, (name,))


async def moved_to(follower: Follower, number: int) -> None:
    """Exchange until the router has moved on."""
    for _ in range(200):
        await follower.exchange()
        if (current := follower.current) and current.state == state(number):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(follower.current)
