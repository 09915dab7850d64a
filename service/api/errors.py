"""Turns every exception of a request into a problem document."""

from __future__ import annotations

from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from service.problems import (
    MEDIA_TYPE,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unavailable,
)

log = structlog.get_logger("sauscan.api")


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The response that tells the client about `problem`."""
    document = problem.document(instance=request.url.path, request_id=correlation_id.get())
    return JSONResponse(document, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def invalid_request(errors: list[Any]) -> InvalidRequest:
    """The problem that lists pydantic's findings by where they are."""
    parts = [_part(tuple(error["loc"]), error["msg"]) for error in errors]
    return InvalidRequest(f"{len(parts)} invalid part(s); see errors.", errors=parts)


def _part(location: tuple[Any, ...], message: str) -> dict[str, str]:
    source, *path = location or ("body",)
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return {"detail": message, "pointer": pointer, "in": str(source)}


def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return problem_response(request, error)


def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    return problem_response(request, invalid_request(list(error.errors())))


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kinds: dict[int, type[Problem]] = {404: NotFound, 405: MethodNotAllowed}
    kind = kinds.get(error.status_code, InvalidRequest if error.status_code < 500 else InternalError)
    return problem_response(request, kind(headers=error.headers))


def _database(request: Request, error: Exception) -> JSONResponse:
    log.error("database does not answer", exc_info=error)
    return problem_response(
        request, Unavailable("The database does not answer.", headers={"Retry-After": "5"})
    )


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """The log gets the exception, the client gets the request id."""
    log.error("unhandled exception", exc_info=error, path=request.url.path)
    problem = InternalError("The request id finds this case in the log.")
    # This handler runs outside of the middleware that adds the header to all other responses.
    problem.headers["X-Request-ID"] = correlation_id.get() or ""
    return problem_response(request, problem)


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(PoolTimeoutError, _database)
    app.add_exception_handler(Exception, _unexpected)
