"""Encoding what one request brought, several items of it at a time; and the model it asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rematch_ray.data.item import Item
from rematch_ray.serve.backend import Backend, EncodedQuery, ServedIndex, Side
from rematch_ray.serve.failures import RequestError, failures_named

# of one request at a time: enough to fill batches, too few to fill the encoder's queue
AT_ONCE = 32


async def encode_all(
    backend: Backend, items: Sequence[Item], instruction: str | None, side: Side, *, param: str
) -> list[EncodedQuery]:
    """Encode items, in their order.

    Args:
        backend: that encodes.
        items: of one side.
        instruction: None for the default.
        side: of all of them.
        param: the field they came in.

    Raises:
        RequestError: one cannot be encoded; param names it. The others are given up.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def encode(place: int, item: Item) -> EncodedQuery:
        async with room:
            with failures_named(f"{param}.{place}", "invalid_input"):
                return await backend.encode(item, instruction, side)

    tasks = [asyncio.ensure_future(encode(place, item)) for place, item in enumerate(items)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def instruction_for(asked: str | None, side: Side, served: ServedIndex) -> str | None:
    """The instruction to encode with: documents take the one that the index was built with.

    Args:
        asked: as sent; None for the default.
        side: of what is encoded.
        served: the index.
    """
    if asked is not None or side == "query":
        return asked
    return served.index.get("instruction")


def check_model(asked: str, served: ServedIndex, *, also: Sequence[str] = ()) -> None:
    """Whether the model that a request names is the one served.

    Args:
        asked: as sent.
        served: the model: its name or its digest may be asked for.
        also: further names.

    Raises:
        RequestError: 404, it is another; the message lists those that are served.
    """
    own = [str(served.model[key]) for key in ("name", "digest") if served.model.get(key)]
    if asked not in (allowed := [*also, *own]):
        raise RequestError(
            404,
            "model_not_found",
            f"model {asked!r} is not served here; allowed: {', '.join(allowed)}",
            param="model",
        )
