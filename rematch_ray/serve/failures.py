"""Every way a request can fail, in one shape: ``{"error": {message, type, code, param}}``.

Knows HTTP status codes and nothing of queries, models or Ray.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rematch_ray.errors import UserError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


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
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


def error_response(error: RequestError) -> JSONResponse:
    """The answer to a refused request."""
    kind = _TYPES.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    body = {"message": error.message, "type": kind, "code": error.code, "param": error.param}
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


def install_handlers(api: FastAPI) -> None:
    """Give every failure of an application the same shape."""

    @api.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @api.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return error_response(RequestError(400, "invalid_value", str(error)))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_from_validation(error))

    @api.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists every path"
        return error_response(RequestError(error.status_code, code, message))

    @api.exception_handler(500)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # the details are for the log of the server (the exception is raised there), not the caller
        return error_response(
            RequestError(500, "internal_error", "the server failed; its log says why")
        )


def _from_validation(error: RequestValidationError) -> RequestError:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return RequestError(400, "invalid_json", f"the body is not JSON: {reason}")
    where = ".".join(str(step) for step in problem["loc"] if step != "body")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return RequestError(
        422,
        "unknown_field" if problem["type"] == "extra_forbidden" else "invalid_field",
        f"{where}: {message}" if where else message,
        param=where or None,
    )
