"""What can be asked for on the page: each with a page that says what will happen, and a form.

A link leads to the question, which changes nothing; only the form's POST does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from flask import Blueprint, Response, redirect, render_template, request, url_for
from marshmallow import ValidationError
from werkzeug.exceptions import BadRequest, Forbidden, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from receiver.desk import DeskOf, JournalDesk
from receiver.schemas import PauseBody, ReasonBody
from receiver.web import browsers
from receiver.web.auth import Access, Scope
from receiver.web.pages import answer_errors, desk


@dataclass(frozen=True)
class _Question:
    """What a person is asked before it is done."""

    title: str
    means: str
    takes_reason: bool = False
    takes_time: bool = False


_ON_RUN = {
    "retry": _Question("Retry", "The run is queued again, with all its attempts, and starts as soon"
                       " as limits allow. It counts as approved."),
    "cancel": _Question("Cancel", "A run that waits is cancelled at once. One that is running is "
                        "asked to stop, which it may heed or not.", takes_reason=True),
    "approve": _Question("Approve", "The action runs as soon as limits allow."),
    "reject": _Question("Reject", "The run is cancelled, and the action does not run.",
                        takes_reason=True),
}  # fmt: skip
_PAUSE = _Question("Pause", "No run starts until it is resumed. What runs goes on, and alerts are "
                   "accepted all the same.", takes_reason=True, takes_time=True)  # fmt: skip
_RESUME = _Question("Resume", "What waited starts, as far as limits allow.")
_REPLAY = _Question(
    "Replay", "The alert is routed again, as if Alertmanager had just sent it: its action runs if "
    "it can be mapped to one now."
)  # fmt: skip


def create_forms(desk_of: DeskOf, access: Access) -> Blueprint:
    """Return the blueprint of all that acts."""
    forms = Blueprint("forms", __name__, template_folder="templates")
    browsers.protect(access.guard(forms, Scope.OPERATE))
    forms.after_request(browsers.remember)
    answer_errors(forms)

    @forms.route("/runs/<int:run_id>/<any(retry, cancel, approve, reject):name>",
                 methods=["GET", "POST"])  # fmt: skip
    def on_run(run_id: int, name: str) -> AnyResponse:
        here = desk(desk_of)
        back = url_for("pages.run", run_id=run_id)
        run = here.run(run_id)

        def act(said: Mapping[str, str]) -> str:
            done: str = getattr(here, name)(run_id, **said)
            return done

        about = f"run {run_id}, {run['action']} for {run['alert_name'] or run['fingerprint']}"
        return _ask_or_do(_ON_RUN[name], about, back, act)

    @forms.route("/<any(pause, resume):name>", methods=["GET", "POST"])
    @forms.route("/actions/<action>/<any(pause, resume):name>", methods=["GET", "POST"])
    def on_action(name: str, action: str | None = None) -> AnyResponse:
        here = desk(desk_of)
        here.check_action(action)

        def act(said: Mapping[str, str]) -> str:
            return _pause(here, action, said) if name == "pause" else here.resume(action)

        question = _PAUSE if name == "pause" else _RESUME
        return _ask_or_do(question, action or "all actions", url_for("pages.all_actions"), act)

    @forms.route("/rejected/<int:rejected_id>/replay", methods=["GET", "POST"])
    def on_rejected(rejected_id: int) -> AnyResponse:
        here = desk(desk_of)
        alert = here.rejected_alert(rejected_id)

        def act(said: Mapping[str, str]) -> str:
            del said
            counts = here.replay(rejected_id)
            words = (f"{counts[name]} {name}" for name in ("accepted", "duplicate", "rejected"))
            return f"rejected alert {rejected_id} is replayed: {', '.join(words)}"

        about = f"rejected alert {rejected_id}, {alert['alert_name'] or alert['fingerprint']}"
        return _ask_or_do(_REPLAY, about, url_for("pages.rejected"), act)

    return forms


def create_login(access: Access) -> Blueprint:
    """Return the blueprint of `/login`, where a browser asks its reader for a better password."""
    login = Blueprint("login", __name__, template_folder="templates")
    browsers.protect(login)
    answer_errors(login)

    @login.get("/login")
    def better() -> AnyResponse:
        try:
            access.require(Scope.OPERATE)
        except Forbidden as error:
            raise Unauthorized(error.description, www_authenticate=access.challenges()) from None
        return redirect(url_for("pages.now"), 303)

    return login


def _ask_or_do(
    question: _Question, about: str, back: str, act: Callable[[Mapping[str, str]], str]
) -> AnyResponse:
    if request.method != "POST":
        return Response(
            render_template(
                "question.html", question=question, about=about, back=back,
                field=browsers.FIELD, token=browsers.token(),
            )
        )  # fmt: skip
    browsers.check_token()
    said = {name: value for name, value in request.form.items() if name != browsers.FIELD}
    try:
        if not question.takes_time:
            said = (ReasonBody() if question.takes_reason else ReasonBody(only=())).load(said)
        done = act(said)
    except ValidationError as error:
        raise BadRequest(f"{question.title}: {error.messages}") from None
    return browsers.say(redirect(back, 303), done)


def _pause(here: JournalDesk, action: str | None, said: Mapping[str, str]) -> str:
    wanted = PauseBody(exclude=["action"]).load({k: v for k, v in said.items() if v})
    lasting: timedelta | None = wanted["lasting"]
    return here.pause(action, wanted["reason"], lasting)
