"""What is answered on a wrong path."""

import pytest

from receiver.web.wrong_paths import describe_wrong_path


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("", "the URL has no path"),
        ("/", "the URL has no path"),
        ("/alerts", "Alertmanager's own API"),
        ("/api/v1/alerts", "Alertmanager's own API"),
        ("/api/v2/alerts", "Alertmanager's own API"),
        ("/alertmanager/api/v2/alerts", "Alertmanager's own API"),
        ("/webhooks", "resembles /webhook"),
        ("/webhooks/log_action", "resembles /webhook"),
        ("/Webhook", "resembles /webhook"),
        ("/webook", "resembles /webhook"),
        ("/webhook/a/b", "an action's name has no slash"),
        ("//webhook", "empty part"),
        ("/webhook//log_action", "empty part"),
        ("/alert-receiver/webhook", "prefix before /webhook"),
        ("/x/webhook/log_action", "prefix before /webhook"),
        ("/elsewhere", "there is nothing"),
        ("/%0a", "there is nothing"),
        ("/" + "x" * 10_000, "there is nothing"),
    ],
)
def test_answer_says_what_the_path_looks_like_and_where_alerts_are_posted(
    path: str, hint: str
) -> None:
    text = describe_wrong_path("POST", path)

    assert hint in text
    assert text.endswith("; alerts are posted to /webhook, or to /webhook/<action>")
    assert len(text) < 250


def test_other_method_on_the_webhook_is_named() -> None:
    assert describe_wrong_path("GET", "/webhook/").startswith("the method is GET, not POST; ")
