"""Every way a request can fail, in one shape: ``{"error": {message, type, code, param}}``.

Knows HTTP status codes and what a backend may raise; nothing of queries, models or Ray.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import DeadlineError, NotReadyError, OverloadedError
from rematch_ray.serve.observation import facts_of

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "deadline_error",
}
_STATUS_BY_OVERLOAD = {"budget_unavailable": 429, "quota_exceeded": 429}
_MAX_MESSAGE = 1000
# type of a validation error that is no mistake in the shape of a body, but of its size
TOO_MANY = "too_many"
_log = logging.getLogger("rematch_ray.serve.failures")


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        code: stable name of the reason, for programs.
        message: what was given, what is allowed, what to do; for people.
        param: the field of the request that is at fault, if one is.
        retry_after_s: seconds after which a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


def refuse(param: str, message: str) -> RequestError:
    """A value that cannot be; param names its field."""
    return RequestError(400, "invalid_value", f"{param}: {message}", param=param)


def error_body(error: RequestError) -> dict[str, dict[str, str | None]]:
    """The one shape; also of a search that failed among others."""
    kind = _TYPES.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    message, param = _sendable(error.message), error.param and _sendable(error.param)
    return {"error": {"message": message, "type": kind, "code": error.code, "param": param}}


def error_response(error: RequestError) -> JSONResponse:
    """The answer to a refused request."""
    headers = {}
    if error.retry_after_s is not None:
        # whole seconds, and never 0: that would be read as "at once"
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


async def turn_away(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that comes to no route, and note what its route would have noted.

    Args:
        error: why.
        scope: of the request, as a layer around the routes gets it.
        receive: likewise.
        send: likewise.
    """
    facts_of(scope).code = error.code
    if (route := _route_of(scope)) is not None:
        scope["route"] = route
    await error_response(error)(scope, receive, send)


def _route_of(scope: Scope) -> BaseRoute | None:
    """The route that would have answered; None where no path is like this one."""
    routes: list[BaseRoute] = scope["app"].routes if "app" in scope else []
    return next((route for route in routes if route.matches(scope)[0] is not Match.NONE), None)


class FailureAnswer:
    """ASGI layer that answers 500 to what nobody foresaw, and logs it by the request's id.

    It stands inside `Observed`, so that id and code are in the answer and in the record; the
    framework's own handler of 500 stands outside of every layer.

    Args:
        app: what may fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, and raises what was raised once it is answered: the server counts it."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if scope["type"] == "http":
                # the details are for the log, not the caller
                request_id = scope.get("state", {}).get("request_id", "")
                _log.exception("request %s failed", request_id)
                facts_of(scope).code = INTERNAL.code
                if not has_begun:
                    await error_response(INTERNAL)(scope, receive, send)
            raise


def _sendable(text: str) -> str:
    """Text as one line that UTF-8 can carry: what a caller sent may be quoted in it."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 3] + "..."


@contextmanager
def failures_named(param: str | None = None, code: str = "invalid_value") -> Iterator[None]:
    """Give what a backend may raise its HTTP status.

    Args:
        param: the field that a mistake is in, if it can only be one.
        code: of a mistake.
    """
    try:
        yield
    except NotReadyError as waiting:
        raise RequestError(503, "not_ready", str(waiting), retry_after_s=1) from waiting
    except OverloadedError as full:
        status = _STATUS_BY_OVERLOAD.get(full.code, 503)
        raise RequestError(status, full.code, str(full), retry_after_s=full.retry_after_s) from full
    except DeadlineError as late:
        raise RequestError(504, "deadline_exceeded", str(late), param="deadline_ms") from late
    except UserError as mistake:
        raise RequestError(400, code, str(mistake), param=param) from mistake


def install_handlers(api: FastAPI) -> None:
    """Give every failure of an application the same shape."""

    @api.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return _answer(request, error)

    @api.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return _answer(request, RequestError(400, "invalid_value", str(error)))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, from_validation(error))

    @api.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        code = _UNROUTED.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists every path"
        answer = _answer(request, RequestError(error.status_code, code, message))
        answer.headers.update(error.headers or {})
        return answer

    @api.exception_handler(500)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # of layers around `FailureAnswer`: whatever is raised inside has been answered
        return _answer(request, INTERNAL)


def _answer(request: Request, error: RequestError) -> JSONResponse:
    facts_of(request.scope).code = error.code
    return error_response(error)


# 400 is raised by the framework for bodies that even a JSON parser gives up on
_UNROUTED = {400: "invalid_json", 404: "unknown_path", 405: "method_not_allowed"}
INTERNAL = RequestError(500, "internal_error", "the server failed; its log says why")


def from_validation(error: RequestValidationError | ValidationError) -> RequestError:
    """The first thing that is wrong with the shape of a body."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return RequestError(400, "invalid_json", f"the body is not JSON: {reason}")
    # steps in angle brackets name a form that a value may have, not a field
    steps = [str(step) for step in problem["loc"]]
    steps = steps[1:] if steps[:1] == ["body"] else steps
    where = ".".join(step for step in steps if not step.startswith("<"))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == TOO_MANY:
        return refuse(where, message)
    return RequestError(
        422,
        "unknown_field" if problem["type"] == "extra_forbidden" else "invalid_field",
        f"{where}: {message}" if where else message,
        param=where or None,
    )
