"""restart_service against a manager on loopback, and what the receiver expects of it."""

import fake_manager
import pytest
import restart_service

from receiver import PermanentError, TemporaryError
from receiver.testing import make_alert, make_context, run_action
from receiver.testing.conformance import THREADS, ActionConformance, Subject

TOKEN = "t0ken-s3cret"


@pytest.fixture
def manager():
    with fake_manager.FakeManager(TOKEN) as running:
        yield running


@pytest.fixture
def environment(manager):
    return {
        "RESTART_URL": manager.url,
        "RESTART_TOKEN": TOKEN,
        "RESTART_SERVICES": "web, mail",
    }


def context_of(service, **changes):
    return make_context(make_alert(labels={"service": service}), **changes)


def test_the_service_of_the_alert_is_restarted(manager, environment):
    result = run_action(restart_service, environment=environment, context=context_of("mail"))
    assert result == {"service": "mail", "restart": 1}
    assert list(manager.restarts.values()) == ["mail"]


def test_the_label_can_be_another(manager, environment):
    context = make_context(make_alert(labels={"job": "web", "service": "mail"}))
    environment["RESTART_LABEL"] = "job"
    assert run_action(restart_service, environment=environment, context=context)["service"] == "web"


@pytest.mark.parametrize("service", ["db", "", "web/../db", "web, mail"])
def test_nothing_else_is_ever_restarted(manager, environment, service):
    with pytest.raises(PermanentError, match="is not among RESTART_SERVICES"):
        run_action(restart_service, environment=environment, context=context_of(service))
    assert manager.restarts == {}


def test_the_manager_is_told_once_the_alert_has_resolved(manager, environment):
    run_action(restart_service, environment=environment, context=context_of("web"), hook="resolved")
    assert list(manager.all_clears.values()) == ["web"]
    assert manager.restarts == {}


def test_a_dry_run_says_what_would_be_restarted(manager, environment):
    said = run_action(
        restart_service, environment=environment, context=context_of("web"), hook="describe"
    )
    assert said == "would restart web because 'queue_depth' is 90"


@pytest.mark.parametrize(
    ("status", "error"), [(503, TemporaryError), (429, TemporaryError), (403, PermanentError)]
)
def test_the_manager_says_whether_to_try_again(manager, environment, status, error):
    manager.refuses_with = status
    with pytest.raises(error, match=f"the manager answered {status}"):
        run_action(restart_service, environment=environment, context=context_of("web"))


def test_a_manager_that_is_down_is_worth_another_attempt(environment):
    environment["RESTART_URL"] = "http://127.0.0.1:1"
    with pytest.raises(TemporaryError, match="gave no answer"):
        run_action(restart_service, environment=environment, context=context_of("web"))


class TestConformance(ActionConformance):
    """What the receiver expects of every action."""

    @pytest.fixture
    def subject(self, manager, environment):
        def refuse(status):
            manager.refuses_with = status

        services = [f"service-{number}" for number in range(THREADS)]
        return Subject(
            restart_service,
            effects=lambda: [*manager.restarts.items(), *manager.all_clears.items()],
            environment=environment | {"RESTART_SERVICES": ",".join(services)},
            alert=lambda number: make_alert(labels={"service": services[number]}),
            temporary_trouble=lambda: refuse(502),
            permanent_trouble=lambda: refuse(401),
        )
