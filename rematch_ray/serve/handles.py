"""Serve's handles as what the router calls: errors as ours, a lost replica tried once more.

An adapter: knows Ray and nothing of searches.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import DeadlineError, NotReadyError, OverloadedError
from rematch_ray.serve.wire import GenerationGoneError

# what a deployment says in words of ours; the remote stack is of no use to a caller
_OURS = (UserError, GenerationGoneError, DeadlineError, OverloadedError, NotReadyError)
# a replica that dies takes its requests with it; what is asked twice does no harm
_TRIES = 2
logger = logging.getLogger(__name__)


class Deployed:
    """A deployment of this application.

    Args:
        name: for messages.
        handle: Serve's.
        timeout_s: an answer that takes longer is a failure; None waits for ever.
        tries: how often a call is made when replicas die under it; 1 for what must not be repeated.
    """

    def __init__(
        self,
        name: str,
        handle: DeploymentHandle,
        *,
        timeout_s: float | None = None,
        tries: int = _TRIES,
    ) -> None:
        self.name = name
        self._handle = handle
        self._timeout_s = timeout_s
        self._tries = tries
        # making a handle of a method takes longer than using it
        self._methods: dict[str, Any] = {}

    async def call(self, method: str, *values: Any) -> Any:
        """Call a method of one replica.

        Raises:
            OverloadedError: every replica's queue is full.
            NotReadyError: no replica answers, or those that were asked died.
            UserError: and our other errors, as the replica raised them.
        """
        for left in reversed(range(self._tries)):
            try:
                return await self._call(method, values)
            except RayActorError as died:
                logger.warning("a replica of %s died under %s (%d tries left)",
                               self.name, method, left)  # fmt: skip
                if not left:
                    raise NotReadyError(
                        f"the {self.name} was lost while it answered; ask again"
                    ) from died
        raise AssertionError("at least one try")

    async def _call(self, method: str, values: tuple[Any, ...]) -> Any:
        remote = self._methods.get(method)
        if remote is None:
            remote = self._methods[method] = getattr(self._handle, method)
        response = remote.remote(*values)
        try:
            if self._timeout_s is None:
                return await response
            return await asyncio.wait_for(response, self._timeout_s)
        except asyncio.CancelledError:
            # who asked has gone: what waits at the replica need not be done
            response.cancel()
            raise
        except TimeoutError as silent:
            response.cancel()
            raise NotReadyError(f"the {self.name} does not answer") from silent
        except DeploymentUnavailableError as gone:
            raise NotReadyError(f"the {self.name} is not there: {gone}") from gone
        except BackPressureError as full:
            raise OverloadedError("every replica's queue is full; try again in a moment") from full
        except RayTaskError as failed:
            if isinstance(failed.cause, _OURS):
                raise failed.cause from None
            raise


class RemoteShard(Deployed):
    """See `router.ShardClient`."""

    async def search(self, asked: Any) -> Any:
        """The hits of one query."""
        return await self.call("search", asked)

    async def ask(self, method: str, *values: Any) -> Any:
        """Any other method of the shard."""
        return await self.call(method, *values)


class RemoteEncoder(Deployed):
    """See `gathering.ManyEncoder`."""

    async def encode(self, item: Any, instruction: str | None, side: str) -> Any:
        """Vectors of one item."""
        return await self.call("encode", item, instruction, side)

    async def encode_many(self, asked: Any) -> Any:
        """Vectors of several short texts, or why one has none."""
        return await self.call("encode_many", asked)

    async def match(self, fused_query: Any, fused_documents: Any) -> Any:
        """Log-odds of a query with each document, from fused vectors."""
        return await self.call("match", fused_query, fused_documents)

    async def match_raw(
        self, query: Any, instruction: str | None, documents: Any, document_instruction: Any
    ) -> Any:
        """Log-odds of a query with each document, from the items themselves."""
        return await self.call("match_raw", query, instruction, documents, document_instruction)

    async def identity(self) -> Any:
        """The loaded model's identity."""
        return await self.call("identity")

    async def default_instruction(self) -> Any:
        """The instruction of queries that name none."""
        return await self.call("default_instruction")


class RemoteCoordinator(Deployed):
    """See `follower.CoordinatorClient`."""

    async def exchange(self, report: Any) -> Any:
        """Reports what was seen; gives orders."""
        return await self.call("exchange", report)

    async def report(self, report: Any) -> Any:
        """Reports what a shard has open."""
        return await self.call("report", report)


class RemoteWriter(Deployed):
    """See `router.WriterClient`."""

    async def upsert(self, documents: Any) -> Any:
        """Writes documents."""
        return await self.call("upsert", documents)

    async def delete(self, ids: Any, filter: Any) -> Any:
        """Deletes documents."""
        return await self.call("delete", ids, filter)


class RemoteSets(Deployed):
    """See `set_backend.SetsClient` and `routes.admin.SwapClient`.

    Args:
        name: for messages.
        handle: of `Sets`.
        deployed: name of this deployment of the application.
        timeout_s: of a report.
    """

    def __init__(
        self, name: str, handle: DeploymentHandle, deployed: str, *, timeout_s: float
    ) -> None:
        super().__init__(name, handle, tries=1)
        self._deployed = deployed
        self._prompt = Deployed(name, handle, timeout_s=timeout_s, tries=1)

    async def exchange(self, report: Any) -> Any:
        """Reports what is served; gives orders."""
        return await self._prompt.call("exchange", report, self._deployed)

    async def status(self) -> Any:
        """Where a change of sets stands."""
        return await self.call("status")

    async def swap(self, index: str, model: str | None) -> Any:
        """Begins a change of sets; reads index and model first, which takes a while."""
        return await self.call("swap", index, model)
