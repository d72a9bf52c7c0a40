"""The OpenAPI document of the API, made from its endpoints and their schemas."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from receiver.schemas import Duration, NothingQuery, ProblemSchema

_NUMBER = re.compile(r"<int:(\w+)>")
_PROBLEM = "application/problem+json"
_FAILURES = {
    "400": "what was said is wrong, or nothing that can be meant",
    "401": "no credentials, or wrong ones",
    "403": "these credentials are not good for it, or a page of another origin asks",
    "503": "the journal cannot be reached now",
}
_ABOUT_ONE = {"404": "there is none of this number or name"}
_ACTING = {
    "404": "there is none of this number or name",
    "409": "it is not in a state for that",
    "413": "the body is too large",
    "415": "the body is not application/json",
}
_NOTIFICATION = {
    "type": "object",
    "description": "a notification, as Alertmanager or Grafana posts it",
    "required": ["version", "status", "alerts"],
    "properties": {
        "version": {"type": "string", "enum": ["4"]},
        "status": {"type": "string", "enum": ["firing", "resolved"]},
        "alerts": {"type": "array", "items": {"type": "object"}},
    },
}


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: where, what for, and what it takes and answers."""

    method: str
    path: str
    summary: str
    answer: type[Schema]
    query: type[Schema] = NothingQuery
    body: type[Schema] | None = None
    takes_notification: bool = False

    @property
    def name(self) -> str:
        """A name of its own, such as `post_runs_run_id_retry`."""
        words = re.findall(r"\w+", self.path.replace("<int:", "<"))
        return "_".join([self.method, *words])


def document(prefix: str, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the document, whose paths begin with the prefix."""
    marshmallow = MarshmallowPlugin(schema_name_resolver=_name_of)
    spec = APISpec(
        title="alert-receiver",
        version=version("alert-receiver"),
        openapi_version="3.0.3",
        plugins=[marshmallow],
        info={"description": "What the receiver does, and what can be asked of it."},
        security=[{"token": []}, {"login": []}],
    )
    assert marshmallow.converter is not None
    marshmallow.converter.field_mapping[Duration] = ("string", None)
    spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    spec.components.security_scheme("login", {"type": "http", "scheme": "basic"})
    for one in endpoints:
        spec.path(prefix + _NUMBER.sub(r"{\1}", one.path), operations={one.method: _operation(one)})
    found: dict[str, Any] = spec.to_dict()
    return found


def _name_of(schema: Any) -> str:
    made = schema if isinstance(schema, type) else type(schema)
    return str(made.__name__).removesuffix("Schema")


def _operation(one: Endpoint) -> dict[str, Any]:
    numbers = [
        {"in": "path", "name": name, "required": True,
         "schema": {"type": "integer", "minimum": 0, "format": "int64"}}
        for name in _NUMBER.findall(one.path)
    ]  # fmt: skip
    failures = dict(_FAILURES)
    if one.method == "post":
        failures |= _ACTING
    elif numbers:
        failures |= _ABOUT_ONE
    operation: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [*numbers, {"in": "query", "schema": one.query}],
        "responses": {
            "200": {
                "description": "as asked",
                "content": {"application/json": {"schema": one.answer}},
            },
            **{
                status: {"description": said, "content": {_PROBLEM: {"schema": ProblemSchema}}}
                for status, said in failures.items()
            },
        },
    }
    if one.body is not None or one.takes_notification:
        operation["requestBody"] = {
            "required": one.takes_notification,
            "content": {"application/json": {"schema": one.body or _NOTIFICATION}},
        }
    return operation
