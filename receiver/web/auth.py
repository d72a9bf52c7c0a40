"""Who may do what: bearer tokens, compared in constant time."""

import hmac
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from receiver.settings import Settings


def requires_submit(settings: Settings) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for views that only Alertmanager may use."""
    expected = (settings.submit_token or "").encode()

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if expected and not hmac.compare_digest(_bearer(), expected):
                raise Unauthorized(
                    "this needs a bearer token: RECEIVER_SUBMIT_TOKEN here, "
                    "http_config.authorization in Alertmanager",
                    www_authenticate=WWWAuthenticate("bearer"),
                )
            return view(*args, **kwargs)

        return guarded

    return decorate


def _bearer() -> bytes:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
