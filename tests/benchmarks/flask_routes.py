"""The routes that the receiver is measured against: as little as a Flask program can do."""

import json
from collections.abc import Callable

from flask import Flask, Response, request

# As long as the receiver's own answer.
_ANSWER = '{"accepted":1,"duplicate":0,"resolved":0,"rejected":0}\n'


def create_app(use: Callable[[bytes], object]) -> Flask:
    """Return an application that reads a notification, hands it to `use`, and answers."""
    app = Flask(__name__, static_folder=None)

    @app.post("/webhook")
    def receive() -> Response:
        use(request.get_data(cache=False))
        return Response(_ANSWER, 200, mimetype="application/json")

    @app.get("/-/ready")
    def ready() -> Response:
        return Response("ready\n", mimetype="text/plain")

    return app


bare = create_app(len)
parsed = create_app(json.loads)
