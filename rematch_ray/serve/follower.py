"""How a router follows the coordinator: reports a few times a second, goes by the last orders.

A coordinator that falls silent is obeyed for a while; then the router serves without a ceiling and
says so. The state of the index moves with the orders, once its facts have been fetched, so that no
request waits for them; nor does the next exchange. Knows shards and coordinator by protocols, and
no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import NotReadyError, OverloadedError
from rematch_ray.serve.facts import summed
from rematch_ray.serve.forecast import Forecast
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.planning import Planner
from rematch_ray.serve.waits import Waits
from rematch_ray.serve.wire import Asked, Found, GenerationGoneError, Orders, RouterReport, State

EXCHANGE_S = 0.2
# a coordinator restarts within this; its orders hold meanwhile
OBEYED_S = 10.0
logger = logging.getLogger(__name__)


class ShardClient(Protocol):
    """A shard of the index, whichever replica answers."""

    async def search(self, asked: Asked) -> Found:
        """See `Shard.search`."""
        ...

    async def ask(self, method: str, *values: Any) -> Any:
        """Any other method of `Shard`."""
        ...


class CoordinatorClient(Protocol):
    """See `Coordinator`."""

    async def exchange(self, report: RouterReport) -> Orders:
        """Reports what was seen; gives orders."""
        ...


@dataclass(frozen=True)
class Admitted:
    """What a request is admitted to.

    Attributes:
        state: generations of the shards.
        planner: over the facts of that state.
        live: documents of each shard.
    """

    state: State
    planner: Planner
    live: tuple[int, ...]


class Follower:
    """Orders of the coordinator, and the state that requests are admitted to.

    Args:
        shards: in order.
        coordinator: None serves the newest state, without ceiling and quotas.
        forecast: fed by the router; tells how long an unloaded search takes.
        quota: that leases are for.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        shards: Sequence[ShardClient],
        coordinator: CoordinatorClient | None,
        *,
        forecast: Forecast,
        quota: LeasedQuota,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shards = list(shards)
        self._coordinator = coordinator
        self._forecast = forecast
        self._quota = quota
        self._clock = clock
        self._name = uuid.uuid4().hex
        self._orders = Orders()
        self._heard_at = clock()
        self._is_silent = False
        self._admitted: Admitted | None = None
        self._task: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self.waits = Waits(clock)
        self.refused = 0

    @property
    def orders(self) -> Orders:
        """What to go by now."""
        return Orders() if self.is_silent else self._orders

    @property
    def is_silent(self) -> bool:
        """Whether the coordinator has not answered for so long that its orders lapsed."""
        return self._coordinator is not None and self._clock() - self._heard_at > OBEYED_S

    @property
    def current(self) -> Admitted | None:
        """What requests are admitted to; None until a shard has answered."""
        return self._admitted

    def start(self) -> None:
        """Begin to report, in the running event loop; does nothing the second time."""
        if self._task is None and self._coordinator is not None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    def stop(self) -> None:
        """End to report: nobody asks any more."""
        for task in (self._task, self._moving):
            if task is not None:
                task.cancel()

    async def admitted(self) -> Admitted:
        """What a request that comes now is admitted to.

        Raises:
            NotReadyError: no shard has answered yet.
        """
        return self._admitted or await self.readmit(None)

    async def readmit(self, before: Admitted | None) -> Admitted:
        """What to try after a generation was gone: the newest state that the shards have.

        Args:
            before: what failed; another request may have moved on meanwhile.
        """
        if self._admitted is not None and self._admitted is not before:
            return self._admitted
        open_states = await asyncio.gather(*(shard.ask("states") for shard in self._shards))
        for name in reversed(open_states[0]):
            if all(name in states for states in open_states):
                state = State(name, tuple(states[name] for states in open_states))
                return await self._adopt(state)
        raise NotReadyError("the shards of the index have no state in common yet; ask again")

    def admit(self) -> None:
        """Turn a search away that would only wait, whatever it asks for.

        While the floor does not keep up, no more searches are begun here than are answered in the
        time that is borne: what is admitted is on time, and what waited before the refusals began
        is worked off by all that the floor can do.

        Raises:
            OverloadedError: too many are under way.
        """
        bearable_s = self.orders.bearable_s
        if bearable_s is not None and not self.waits.has_room(bearable_s):
            self.refused += 1
            raise OverloadedError(
                "no budget is small enough for this many requests; try again in a moment"
            )

    async def exchange(self) -> None:
        """Report once and take orders; a state that they name is moved on to in the background."""
        assert self._coordinator is not None
        try:
            orders = await self._coordinator.exchange(self._report())
        except (NotReadyError, OverloadedError) as silent:
            self._tell_silence(silent)
            return
        except Exception as failed:
            self._tell_silence(failed)
            raise
        self._heard_at, self._orders = self._clock(), orders
        if self._is_silent:
            logger.warning("the coordinator answers again")
            self._is_silent = False
        for key, lease in orders.leases.items():
            self._quota.grant(key, lease)
        # one at a time: what is ordered meanwhile is ordered by the exchange after it, too
        if self._is_ahead(orders.state) and (self._moving is None or self._moving.done()):
            self._moving = asyncio.create_task(self._move_on(orders.state))

    def _is_ahead(self, state: State | None) -> TypeGuard[State]:
        return state is not None and (self._admitted is None or state != self._admitted.state)

    async def _move_on(self, state: State) -> None:
        try:
            await self._adopt(state)
        except (NotReadyError, OverloadedError, GenerationGoneError, UserError) as error:
            logger.warning("not moving on to %s yet: %s", state.name, error)
        except Exception:
            # nobody awaits this task; the next exchange tries again
            logger.exception("moving on to %s failed", state.name)

    async def _follow(self) -> None:
        while True:
            try:
                await self.exchange()
            except Exception:
                # nobody awaits this task: without it the router would follow nobody, unnoticed
                logger.exception("the exchange with the coordinator failed")
            await asyncio.sleep(EXCHANGE_S)

    async def _adopt(self, state: State) -> Admitted:
        before = self._admitted
        parts = await asyncio.gather(
            *(
                shard.ask("facts", state.name, generation)
                for shard, generation in zip(self._shards, state.generations, strict=True)
            )
        )
        live = tuple(part.live for part in parts)
        if self._admitted is None or self._admitted is before:
            # else a request moved on meanwhile; the next exchange sees whether that is as ordered
            self._admitted = Admitted(state, Planner(summed(parts, state.name)), live)
        return self._admitted

    def _report(self) -> RouterReport:
        delay_s, searches = self.waits.take()
        refused, self.refused = self.refused, 0
        return RouterReport(
            router=self._name,
            delay_s=delay_s,
            searches=searches,
            refused=refused,
            unloaded_s=self._unloaded_s(),
            demand=self._quota.wanted(),
        )

    def _unloaded_s(self) -> float | None:
        if self._admitted is None:
            return None
        option = self._admitted.planner.plain()
        return option.mean_ms(self._forecast) / 1e3

    def _tell_silence(self, error: Exception) -> None:
        if self.is_silent and not self._is_silent:
            logger.warning("the coordinator is silent, serving without a ceiling: %s", error)
            self._is_silent = True
