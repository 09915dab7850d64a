"""How a page is made: the templates, the headers that go with each page, and pages for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.api.errors import invalid_request
from service.domain.sources import shown
from service.domain.states import State
from service.problems import Problem, Unauthenticated
from service.reports.characters import visible
from service.reports.figures import duration, given

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_MAX_FORM_BYTES = 8192


def worded(state: str) -> str:
    """A state for people: "failed" beside the verdict "fail" would be read as one."""
    return "error" if state == State.FAILED else state


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(visible=visible, duration=duration, worded=worded, shown=shown, given=given)
_TEMPLATES = Jinja2Templates(env=_ENVIRONMENT)


def page(request: Request, template: str, /, *, status: int = 200, **context: Any) -> Response:
    """The page of a template, with the headers of all pages."""
    return _TEMPLATES.TemplateResponse(request, template, context, status_code=status, headers=HEADERS)


class PageRoute(APIRoute):
    """A route whose problems are pages too; a stranger gets the sign-in page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with a page for each problem that it raises."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _problem_page(request, invalid_request(list(error.errors())))
            except Problem as problem:
                return _problem_page(request, problem)

        return handler


def _problem_page(request: Request, problem: Problem) -> Response:
    if isinstance(problem, Unauthenticated):
        status = 200 if request.method == "GET" else problem.status
        return page(request, "sign_in.html.j2", status=status, problem=None)
    response = page(request, "problem.html.j2", status=problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


async def posted(request: Request) -> dict[str, list[str]]:
    """The fields of a posted form; none for a form that is not ours, which is not read to its end."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return {}
    return parse_qs(body.decode("latin-1"))
