"""Which actions an alert goes to, which rule chose them, and what is said of the others."""

import pytest

from receiver.alertmanager import Alert
from receiver.routing import Catalog, Rejection, Route, route
from tests.support.notifications import T0

CATALOG = Catalog(
    frozenset({"log_action", "file_action", "http_plugin"}),
    {
        "efs_emergency": "the action efs_emergency is not configured: EFS_FILE_SYSTEM_ID: is …",
        "audit": "audit only wraps other actions; it has no execute of its own",
    },
)
LABEL, ANNOTATION = "label action_plugin", "annotation action_plugin"
TEMPLATE_ERROR = (
    "<error expanding template: error executing template __alert_X: template: __alert_X:1:92, "
    "executing first: error calling first: first() called on vector with no elements>"
)


def routed(
    label: str | None = None,
    annotation: str | None = None,
    path: str = "",
    default: tuple[str, ...] = (),
    catalog: Catalog = CATALOG,
) -> Route:
    labels = {"alertname": "Test"} | ({} if label is None else {"action_plugin": label})
    annotations = {} if annotation is None else {"action_plugin": annotation}
    return route(Alert("firing", labels, annotations, T0, None, "", "f1"), path, default, catalog)


@pytest.mark.parametrize(
    ("path", "label", "annotation", "default", "action", "rule"),
    [
        ("http_plugin", "log_action", "log_action", "log_action", "http_plugin", "path"),
        ("", "http_plugin", "log_action", "log_action", "http_plugin", LABEL),
        ("", None, "http_plugin", "log_action", "http_plugin", ANNOTATION),
        ("", None, None, "http_plugin", "http_plugin", "ACTION_PLUGIN"),
        ("http_plugin", "nonsense", "nonsense", "log_action", "http_plugin", "path"),
        ("", "http_plugin", "nonsense", "log_action", "http_plugin", LABEL),
        ("", "", "http_plugin", "log_action", "http_plugin", ANNOTATION),
        ("", " \t", "http_plugin", "log_action", "http_plugin", ANNOTATION),
        ("", " ", "\n", "http_plugin", "http_plugin", "ACTION_PLUGIN"),
        ("", ",", "http_plugin", "log_action", "http_plugin", ANNOTATION),
        ("", " , ,", ",\n,", "http_plugin", "http_plugin", "ACTION_PLUGIN"),
        ("", " http_plugin\n", None, "log_action", "http_plugin", LABEL),
        ("", None, "\thttp_plugin ", "log_action", "http_plugin", ANNOTATION),
    ],
)
def test_first_that_answers_decides(
    path: str, label: str | None, annotation: str | None, default: str, action: str, rule: str
) -> None:
    assert routed(label, annotation, path, (default,)) == Route((action,), (), rule)


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("log_action,file_action", ("log_action", "file_action")),
        ("file_action,log_action", ("file_action", "log_action")),
        (" file_action ,\n log_action ", ("file_action", "log_action")),
        (",log_action,,file_action,", ("log_action", "file_action")),
        ("log_action,", ("log_action",)),
        ("log_action,log_action", ("log_action",)),
        ("file_action, log_action ,file_action", ("file_action", "log_action")),
    ],
)
@pytest.mark.parametrize("place", [LABEL, ANNOTATION])
def test_list_names_several_actions_each_once_in_its_order(
    place: str, text: str, actions: tuple[str, ...]
) -> None:
    found = routed(label=text) if place == LABEL else routed(annotation=text)

    assert found == Route(actions, (), place)


def test_default_may_name_several_actions() -> None:
    found = routed(default=("file_action", "log_action", "file_action"))

    assert found == Route(("file_action", "log_action"), (), "ACTION_PLUGIN")


def test_alert_that_names_nothing_runs_nothing_and_learns_the_three_cures() -> None:
    found = routed()

    (rejection,) = found.rejections
    assert (found.actions, found.rule, rejection.name) == ((), "none", "")
    for cure in ("ACTION_PLUGIN", "label action_plugin", "/webhook/<action>"):
        assert cure in rejection.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("log_acton", "there is no action 'log_acton' (did you mean log_action?)"),
        ("Log_Action", "there is no action 'Log_Action' (did you mean log_action?)"),
        ("http-plugin", "there is no action 'http-plugin' (did you mean http_plugin?)"),
        ("restart", "there is no action 'restart'"),
        ("../../etc/passwd", "there is no action '../../etc/passwd'"),
        ("a\x1b[31m\nb", "there is no action 'a\\x1b[31m\\nb'"),
        ("{catalog.__class__}", "there is no action '{catalog.__class__}'"),
        ("%s%n", "there is no action '%s%n'"),
    ],
)
def test_unknown_name_is_told_with_the_nearest_that_is_loaded(name: str, reason: str) -> None:
    assert routed(name) == Route((), (Rejection(name, f"{LABEL}: {reason}"),), LABEL)


def test_nearest_name_is_never_one_that_cannot_run() -> None:
    (rejection,) = routed("efs_emergenc").rejections

    assert "did you mean" not in rejection.reason


@pytest.mark.parametrize("name", CATALOG.not_loaded)
@pytest.mark.parametrize("place", ["path", LABEL, ANNOTATION])
def test_known_action_that_is_not_loaded_is_rejected_with_its_own_reason(
    place: str, name: str
) -> None:
    found = routed(
        label=name if place == LABEL else None,
        annotation=name if place == ANNOTATION else None,
        path=name if place == "path" else "",
        default=("log_action",),
    )

    assert found == Route((), (Rejection(name, CATALOG.not_loaded[name]),), place)


def test_name_that_cannot_run_spoils_no_other() -> None:
    found = routed("nonsense, log_action, efs_emergency, file_action, nonsense")

    assert found.actions == ("log_action", "file_action")
    assert [one.name for one in found.rejections] == ["nonsense", "efs_emergency"]


@pytest.mark.parametrize("place", [LABEL, ANNOTATION])
def test_failed_template_is_one_rejection_however_many_commas_it_holds(place: str) -> None:
    found = routed(
        label=TEMPLATE_ERROR if place == LABEL else None,
        annotation=TEMPLATE_ERROR if place == ANNOTATION else None,
        default=("log_action",),
    )

    (rejection,) = found.rejections
    assert (found.actions, found.rule) == ((), place)
    assert rejection.name == TEMPLATE_ERROR[:200]
    assert rejection.reason == (
        f"{place}: a template failed where the action's name should be; mend the rule"
    )


@pytest.mark.parametrize("length", [199, 200, 201, 100_000])
def test_kept_name_has_at_most_200_characters(length: int) -> None:
    (rejection,) = routed("ü" * length).rejections

    assert rejection.name == "ü" * min(length, 200)
    assert len(rejection.reason) < 300


MANY = Catalog(frozenset(f"a{number}" for number in range(100)))


@pytest.mark.parametrize("number", [20, 22, 100, 20_000])
@pytest.mark.parametrize("place", [LABEL, ANNOTATION])
def test_alert_names_at_most_20_actions_and_the_rest_is_one_wrong_name(
    place: str, number: int
) -> None:
    text = ",".join(f"a{one}" for one in range(number))

    found = (
        routed(label=text, catalog=MANY)
        if place == LABEL
        else routed(annotation=text, catalog=MANY)
    )

    assert found.actions == tuple(f"a{one}" for one in range(20))
    assert [one.name[:7] for one in found.rejections] == ["a20,a21"][: number - 20]


@pytest.mark.parametrize("text", [",".join(f"x{n}" for n in range(20_000)), "x," * 20_000])
def test_list_of_wrong_names_makes_few_rejections(text: str) -> None:
    found = routed(text)

    assert found.actions == ()
    assert len(found.rejections) <= 21


def test_path_stands_for_exactly_one_action() -> None:
    found = routed(path="log_action,file_action")

    assert found.actions == ()
    assert [one.name for one in found.rejections] == ["log_action,file_action"]


def test_nothing_is_known_where_nothing_is_loaded() -> None:
    found = routed("log_action", catalog=Catalog(frozenset()))

    reason = f"{LABEL}: there is no action 'log_action'"
    assert found == Route((), (Rejection("log_action", reason),), LABEL)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("log_action", True),
        ("efs_emergency", True),
        ("audit", True),
        ("nonsense", False),
        ("", False),
    ],
)
def test_catalog_knows_actions_that_cannot_run(name: str, known: bool) -> None:
    assert CATALOG.knows(name) is known
