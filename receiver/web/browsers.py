"""What browsers are told and asked: headers on every answer, and a token in every form.

The token is a random number that a browser holds twice: in a cookie that no script and no other
site can read or send, and in the form. Whoever lures a browser here knows neither. So nothing is
kept, and any replica can check it; that requests come from the receiver's own pages is checked
besides, by `auth`.
"""

import hmac
import secrets
from urllib.parse import quote, unquote

from flask import Blueprint, Response, after_this_request, g, request
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response as AnyResponse

FIELD = "csrf_token"
_SAID = "receiver-said"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: a form would then hide its own origin, too.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def protect(blueprint: Blueprint) -> Blueprint:
    """Return the blueprint, all of whose answers now tell a browser to be careful."""

    @blueprint.after_request
    def tell(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return blueprint


def token() -> str:
    """Return what the hidden field of a form must hold; `remember` has to see the answer."""
    held = request.cookies.get(_cookie(), "")
    # One that the form can carry as it is; what a browser holds otherwise is not ours.
    if len(held) != 64 or not held.isalnum() or not held.isascii():
        held = g.new_token = secrets.token_hex(32)
    return held


def remember(response: Response) -> Response:
    """Give the browser its token, where it got a new one."""
    if "new_token" in g:
        response.set_cookie(
            _cookie(), g.new_token, secure=request.is_secure, httponly=True, samesite="Strict",
            path="/",
        )  # fmt: skip
    return response


def check_token() -> None:
    """Raise Forbidden unless the form was sent from a page that this browser got here."""
    held, sent = request.cookies.get(_cookie(), ""), request.form.get(FIELD, "")
    if not held or not hmac.compare_digest(held.encode(), sent.encode()):
        raise Forbidden("this form is not of this browser, or too old; go back, and try again")


def say(response: AnyResponse, words: str) -> AnyResponse:
    """Let the next page that this browser asks for begin with these words."""
    response.set_cookie(
        _SAID, quote(words[:1000]), max_age=60, secure=request.is_secure, httponly=True,
        samesite="Strict", path="/",
    )  # fmt: skip
    return response


def said_before() -> str:
    """Return the words of `say`, once."""
    words = unquote(request.cookies.get(_SAID, ""), errors="replace")[:1000]
    if words:
        after_this_request(_forget)
    return words


def _forget(response: Response) -> Response:
    response.delete_cookie(_SAID, path="/", secure=request.is_secure, samesite="Strict")
    return response


def _cookie() -> str:
    # So called, only this very host can have set it, and only over TLS.
    return "__Host-receiver-form" if request.is_secure else "receiver-form"
