"""Whatever is sent to the API, it answers as its own document says, and never with a 5xx."""

from collections.abc import Callable

import pytest
import schemathesis
from flask import Flask
from hypothesis import given
from schemathesis import Case, GenerationMode

from tests.support.fuzz import bounded
from tests.support.notifications import alert, notification

DOCUMENT = "/api/v1/openapi.json"
OPERATE = {"Authorization": "Bearer o"}
# A made-up cursor or time may be refused, however well it fits; and what is in no state is a 409.
NOT_ASKED = ("positive_data_acceptance", "ensure_resource_availability", "use_after_free")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_document_tells_of(
    make_app: Callable[..., Flask], mode: GenerationMode
) -> None:
    app = make_app(
        RECEIVER_SUBMIT_TOKEN="s", RECEIVER_OPERATE_TOKEN="o", RECEIVER_ACTIONS="log_action"
    )
    body = notification(alert("a"), alert("b", labels={"action_plugin": "no_such_action"}))
    app.test_client().post(
        "/webhook", data=body, content_type="application/json",
        headers={"Authorization": "Bearer s"},
    )  # fmt: skip
    document = schemathesis.openapi.from_wsgi(DOCUMENT, app, headers=OPERATE)
    sent = 0
    for found in document.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @bounded(12)
        def check(case: Case) -> None:
            nonlocal sent
            sent += 1
            checks = [
                one for one in schemathesis.checks.CHECKS.get_all()
                if one.__name__ not in NOT_ASKED
            ]  # fmt: skip
            case.call_and_validate(headers=OPERATE, checks=checks)

        try:
            check()
        except Exception as error:
            error.add_note(f"{operation.method} {operation.path}")
            raise
    assert sent > 50
