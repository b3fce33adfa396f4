"""Texts go to the encoder together: while it works, what comes meanwhile becomes one call.

A call of its own for each text costs both ends more than a small model takes to read it. Nobody
waits for a call to fill: what has come when the encoder is free goes. Pure: knows no Ray and no
model.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, OverloadedError, Side
from rematch_ray.serve.matching import Matcher

if TYPE_CHECKING:
    from rematch_ray.data.item import Item

# characters, those of the instruction with them, tokenised in a tenth of a millisecond or so
SHORT_TEXT = 500


@dataclass(frozen=True)
class ToEncode:
    """One item, its instruction (None: the default) and its side."""

    item: Item
    instruction: str | None
    side: Side

    @property
    def is_short(self) -> bool:
        """Whether reading it takes less than handing it on: few characters, and no image."""
        return not self.item.images and (
            len(self.item.text) + len(self.instruction or "") <= SHORT_TEXT
        )


class EncoderClient(Matcher, Protocol):
    """See `Encoder`."""

    async def encode(self, item: Item, instruction: str | None, side: Side) -> EncodedQuery:
        """Vectors of one item."""
        ...

    async def identity(self) -> Mapping[str, Any]:
        """The model's identity."""
        ...

    async def default_instruction(self) -> str:
        """The instruction of queries that name none."""
        ...


class ManyEncoder(EncoderClient, Protocol):
    """One that can be asked for many at once."""

    async def encode_many(self, asked: Sequence[ToEncode]) -> Sequence[EncodedQuery | UserError]:
        """Vectors of each, or why there are none."""
        ...


class GatheringEncoder:
    """An encoder that is asked for many short texts at a time, from one event loop.

    Items with images and long texts are called for alone: a text would have to wait for them.

    Args:
        encoder: that is asked.
        most: texts of one call.
        replicas: calls that may be under way at a time, one for each replica; twice as many where
            half a call waits: then the next lies ready when a pass ends.
        most_waiting: texts that wait here; one more is refused.
    """

    def __init__(
        self, encoder: ManyEncoder, *, most: int, replicas: int, most_waiting: int
    ) -> None:
        self._encoder = encoder
        self._most = most
        self._replicas = replicas
        self._most_waiting = most_waiting
        # what each caller waits for, in the order that they came
        self._waiting: OrderedDict[asyncio.Future[EncodedQuery], ToEncode] = OrderedDict()
        self._calls: set[asyncio.Future[Any]] = set()

    async def encode(self, item: Item, instruction: str | None, side: Side) -> EncodedQuery:
        """Vectors of one item.

        Raises:
            UserError: it cannot be read.
            OverloadedError: too many wait already, here or at the encoder.
            NotReadyError: no encoder answers.
        """
        asked = ToEncode(item, instruction, side)
        if not asked.is_short:
            return await self._encoder.encode(item, instruction, side)
        if len(self._waiting) >= self._most_waiting:
            raise OverloadedError("every replica's queue is full; try again in a moment")
        answer: asyncio.Future[EncodedQuery] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = asked
        self._send()
        try:
            return await answer
        finally:
            # who goes makes room at once
            self._waiting.pop(answer, None)

    async def match(self, query_fused: Any, document_fused: Any) -> Any:
        """See `Matcher.match`."""
        return await self._encoder.match(query_fused, document_fused)

    async def match_raw(
        self, query: Any, instruction: str | None, documents: Any, document_instruction: Any
    ) -> Any:
        """See `Matcher.match_raw`."""
        return await self._encoder.match_raw(query, instruction, documents, document_instruction)

    async def identity(self) -> Mapping[str, Any]:
        """The model's identity."""
        return await self._encoder.identity()

    async def default_instruction(self) -> str:
        """The instruction of queries that name none."""
        return await self._encoder.default_instruction()

    def _send(self) -> None:
        """Call for what waits, as far as calls may be made."""
        while self._waiting and len(self._calls) < self._allowed():
            asked: dict[asyncio.Future[EncodedQuery], ToEncode] = {}
            while self._waiting and len(asked) < self._most:
                answer, one = self._waiting.popitem(last=False)
                if not answer.done():  # whoever asked may be going
                    asked[answer] = one
            if asked:
                self._call(asked)

    def _allowed(self) -> int:
        return self._replicas * (2 if 2 * len(self._waiting) >= self._most else 1)

    def _call(self, asked: Mapping[asyncio.Future[EncodedQuery], ToEncode]) -> None:
        call = asyncio.ensure_future(self._encoder.encode_many(list(asked.values())))
        self._calls.add(call)
        call.add_done_callback(lambda call: self._ended(call, list(asked)))

    def _ended(
        self, call: asyncio.Future[Any], answers: Sequence[asyncio.Future[EncodedQuery]]
    ) -> None:
        self._calls.discard(call)
        if call.cancelled():  # the loop ends
            for answer in answers:
                answer.cancel()
            return
        failed = call.exception()
        said = [failed] * len(answers) if failed else call.result()
        for answer, one in zip(answers, said, strict=True):
            if answer.done():
                continue
            if isinstance(one, BaseException):
                answer.set_exception(one)
            else:
                answer.set_result(one)
        self._send()
