"""What a router calls over Serve's handles: who gives up gives up the call."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from rematch_ray.serve.backend import NotReadyError
from rematch_ray.serve.handles import Deployed


class Response:
    """Serve's response of a deployment without replicas: no answer, but it can be cancelled."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Serve's handle; its methods are called `remote`."""

    def __init__(self) -> None:
        self.responses: list[Response] = []

    def __getattr__(self, method: str) -> Any:
        return self

    def remote(self, *values: Any) -> Response:
        self.responses.append(Response())
        return self.responses[-1]


async def test_a_call_is_cancelled_with_its_caller() -> None:
    handle: Any = Handle()
    deployed = Deployed("index shard 0", handle)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(deployed.call("search", None), 0.05)
    assert [response.is_cancelled for response in handle.responses] == [True]


async def test_a_call_that_is_not_answered_in_time_is_cancelled() -> None:
    handle: Any = Handle()
    deployed = Deployed("coordinator", handle, timeout_s=0.05)
    with pytest.raises(NotReadyError, match="does not answer"):
        await deployed.call("exchange", None)
    assert [response.is_cancelled for response in handle.responses] == [True]
