"""How a browser shows its API key: in a cookie that scripts can't read and other sites can't send.

The cookie holds the key itself, so revoking the key ends the session at once and the server keeps no state.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

COOKIE = "sauscan_key"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_AGE_SECONDS = 12 * 3600


def cookie_token(request: Request) -> str | None:
    """The API key that the browser sends along; None without a cookie.

    For a request that changes something it counts only if the browser says that a page of ours made it.
    """
    return request.cookies.get(COOKIE) if request.method in _SAFE or from_our_page(request) else None


def from_our_page(request: Request) -> bool:
    """Whether the browser vouches that the request comes from a page of this server."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return request.headers.get("origin") == f"{request.url.scheme}://{request.url.netloc}"


def sign_in(response: Response, request: Request, token: str) -> None:
    """Give the browser its cookie; over HTTPS it never travels in the clear again."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=_MAX_AGE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def sign_out(response: Response) -> None:
    """Take the cookie back."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
