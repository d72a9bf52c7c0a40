"""The body of a request: JSON, and no larger than it may be."""

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType


def check_content() -> None:
    """Raise UnsupportedMediaType for what is not plain `application/json`."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("a compressed body is not accepted; send it as it is")


def read_body(limit: int) -> bytes:
    """Return the body; raise RequestEntityTooLarge when it is longer than the limit."""
    if request.content_length is not None and request.content_length > limit:
        raise RequestEntityTooLarge
    body = request.get_data(cache=False)
    # A body of unknown length is cut off at the limit without a word.
    if request.content_length is None and len(body) >= limit:
        raise RequestEntityTooLarge
    return body
