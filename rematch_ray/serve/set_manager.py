"""The deployment that changes sets: brings a new one up, removes the old one, tells the routers.

One replica per application. The state machine stands in `swap`; this does its chores on Serve. It
keeps nothing on disk: a replica that starts anew goes by what the routers serve, also where its
configuration names another pair, and removes sets that nobody does. No request passes through it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from pathlib import Path
from typing import Any

from ray import serve

from rematch_ray.errors import UserError
from rematch_ray.serve.replica_log import start_replica
from rematch_ray.serve.sets import build_set, check_pair
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.swap import Phase, SetOrders, SetReport, SetSpec, SwapManager

TICK_S = 0.2
Pair = tuple[str, str | None]
# routers of a deployment that is being replaced still use their sets
FOREIGN_S = 10.0
logger = logging.getLogger(__name__)


class Sets:
    """Replica, the only one, that changes sets.

    Args:
        args: settings of the application; new sets take them over.
        first: the set that came with the application.
        deployed: name of this deployment of the application; routers of another are left alone.
    """

    def __init__(self, args: ServeArgs, first: SetSpec, deployed: str) -> None:
        self._args = args
        self._first = first
        self._deployed = deployed
        self._application = serve.get_replica_context().app_name
        self._manager = SwapManager(
            first,
            warm_timeout_s=args.swap.warm_timeout_s,
            drain_timeout_s=args.swap.drain_timeout_s,
        )
        self._wish: Pair | None = None
        self._is_wish_of_start = False
        self._foreign_at: float | None = None
        self._has_swept = False
        self._chores: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._record = start_replica()

    async def reconfigure(self, config: dict[str, Any] | None) -> None:
        """Takes the pair that the configuration of the deployment names (`user_config`).

        Serve calls this when the configuration changes, and once in every replica that starts,
        before anybody else calls. Of a start it counts only while the first set serves: what the
        routers have moved on to came after it, or from it.

        Raises:
            UserError: it names anything but `index` and `model`.
        """
        if not config:
            return
        if not {"index"} <= set(config) <= {"index", "model"}:
            raise UserError(f"user_config of 'sets' takes index and model, not {sorted(config)}")
        self._wish = (str(config["index"]), config.get("model"))
        self._is_wish_of_start = self._task is None

    async def exchange(self, report: SetReport, deployed: str) -> SetOrders:
        """Takes a router's report, gives it its orders."""
        if self._task is None:  # not in the constructor: it runs outside the event loop
            self._task = asyncio.create_task(self._run())
        if deployed != self._deployed:
            self._foreign_at = time.monotonic()
            return SetOrders()
        return self._manager.report(report)

    async def swap(self, index: str, model: str | None) -> dict[str, Any]:
        """Begins a change; returns where it stands.

        Raises:
            UserError: no such index or model, they do not fit, they are served already, or a change
                is under way.
        """
        name = f"{self._application}-set-{uuid.uuid4().hex[:8]}"
        spec = await asyncio.to_thread(check_pair, Path(index), model, name)
        now = self._manager.serving
        if (spec.index, spec.model) == (now.index, now.model):
            raise UserError(
                f"{index} is served already, with this model: what is added to it is found as it is"
            )
        self._manager.begin(spec)
        logger.info("changing to %s", spec.index)
        return self._manager.status()

    async def status(self) -> dict[str, Any]:
        """Where a change stands, and what serves."""
        return self._manager.status()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._look()
            except Exception:
                # nobody awaits this task: without it no change of sets would ever end
                logger.exception("looking after the sets failed")

    async def _look(self) -> None:
        """Move on as time has passed, and do what is due."""
        before = self._manager.status()["last"]
        chores = self._manager.tick()
        if chores.start is not None:
            self._begin(self._start(chores.start))
        for spec in chores.remove:
            self._begin(self._remove(spec))
        if (last := self._manager.status()["last"]) is not before:
            self._tell(last)
        if self._manager.phase == Phase.SERVING:
            await self._when_quiet()

    async def _when_quiet(self) -> None:
        if self._wish is not None:
            wish, self._wish = self._wish, None
            await self._fulfil(wish)
        is_alone = self._foreign_at is None or time.monotonic() - self._foreign_at > FOREIGN_S
        if not self._has_swept and is_alone:
            self._has_swept = True
            self._begin(self._sweep())

    async def _fulfil(self, wish: Pair) -> None:
        """Begin the change that the configuration asks for, unless it is one of long ago."""
        serving = self._manager.serving
        try:
            if not self._is_wish_of_start or serving == self._first:
                await self.swap(*wish)
                return
            wanted = await asyncio.to_thread(check_pair, Path(wish[0]), wish[1], "")
        except UserError as refused:
            logger.warning("user_config of 'sets': %s", refused)
            return
        if (wanted.index, wanted.model) != (serving.index, serving.model):
            logger.warning(
                "%s serves on, although user_config of 'sets' names %s: swap to it, if that is "
                "still wanted",
                serving.index,
                wish[0],
            )

    def _begin(self, chore: Any) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # what could not be removed costs room, not answers
            logger.error("a chore failed", exc_info=error)

    async def _start(self, spec: SetSpec) -> None:
        try:
            await asyncio.to_thread(
                lambda: serve.run(build_set(self._args, spec), name=spec.name, route_prefix=None)
            )
        except Exception as failed:
            # whatever it is: what is not told to the manager is waited for until it times out
            logger.warning("%s did not come up", spec.index, exc_info=failed)
            self._manager.failed(spec, _first_line(failed))
        else:
            self._manager.started(spec)

    async def _remove(self, spec: SetSpec) -> None:
        if not spec.name:
            # deployments of the application itself go with its next deployment
            logger.info("%s is not used any more", spec.index)
            return
        logger.info("removing %s", spec.index)
        await asyncio.to_thread(serve.delete, spec.name)

    async def _sweep(self) -> None:
        """Removes sets that an earlier replica left behind."""
        known = {self._manager.serving.name}
        prefix = f"{self._application}-set-"
        names = (await asyncio.to_thread(serve.status)).applications
        for name in [name for name in names if name.startswith(prefix) and name not in known]:
            logger.info("removing %s, which nobody uses", name)
            await asyncio.to_thread(serve.delete, name)

    def _tell(self, last: dict[str, Any] | None) -> None:
        if last is not None:
            self._record.swapped(done=last["done"])
            logger.info("change of sets: %s", last)


def _first_line(error: Exception) -> str:
    """What failed, without the stack that Serve puts into its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
