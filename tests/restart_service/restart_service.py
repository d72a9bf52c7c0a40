"""Restarts the service that an alert names, through the HTTP API of its manager.

Tells the manager when the alert has resolved, so that it may close what it has opened about it.
"""

from receiver import PermanentError, Setting, TemporaryError, hookimpl


@hookimpl
def settings():
    """Declare the manager, and what may be restarted."""
    return [
        Setting("RESTART_URL", "url", help="the address of the manager's API", required=True),
        Setting("RESTART_TOKEN", help="its API token", required=True, secret=True),
        Setting("RESTART_SERVICES", "list", help="what may be restarted", required=True),
        Setting("RESTART_LABEL", help="the label that names the service", default="service"),
        Setting("RESTART_TIMEOUT", "duration", "5s", "the time for one call"),
    ]


@hookimpl
def validate_config(settings):
    """Refuse an address with a query, and a time that is none."""
    if "?" in settings["RESTART_URL"]:
        raise ValueError("RESTART_URL: has a query; write the address without one")
    if not settings["RESTART_TIMEOUT"]:
        raise ValueError("RESTART_TIMEOUT: 0s leaves no time for a call; write 5s")


@hookimpl
def default_policy(settings):
    """Let limits count by service, and give the manager time to come back."""
    return {"target_labels": settings["RESTART_LABEL"], "max_attempts": "5", "cooldown": "10m"}


@hookimpl
def execute(context, metric_name, value):
    """Restart the service; the manager restarts once per idempotency key."""
    service = service_of(context)
    answer = call(context, "restart", service, f"{metric_name} is {value:g}")
    context.log.info("service restarted", extra={"service": service})
    return {"service": service, "restart": answer["restart"]}


@hookimpl
def resolved(context):
    """Tell the manager that the trouble is over."""
    service = service_of(context)
    call(context, "all-clear", service, "the alert has resolved")
    return {"service": service}


@hookimpl
def describe(context, metric_name, value):
    """Say what would be restarted."""
    service = service_of(context)
    return f"would restart {service} because {metric_name!r:.100} is {value:g}"


def service_of(context):
    """Return the service of the alert, if it may be restarted; the alert's text is hostile."""
    name = context.alert.labels.get(context.settings["RESTART_LABEL"], "")
    if name not in context.settings["RESTART_SERVICES"]:
        raise PermanentError(
            f"the label {context.settings['RESTART_LABEL']} says {name!r:.100}, which is not among "
            "RESTART_SERVICES; add it there, or mend the rule"
        )
    return name


def call(context, what, service, reason):
    """Post to the manager; what it raises says whether another attempt may help."""
    import requests  # Heavy, and the web process never calls.

    context.raise_if_cancelled()
    limit = context.settings["RESTART_TIMEOUT"].total_seconds()
    try:
        answer = requests.post(
            f"{context.settings['RESTART_URL'].rstrip('/')}/{what}",
            json={"service": service, "reason": reason},
            headers={
                "Authorization": f"Bearer {context.settings['RESTART_TOKEN']}",
                "Idempotency-Key": context.idempotency_key,
            },
            timeout=min(limit, max(context.remaining_seconds(), 0.001)),
            allow_redirects=False,
        )
    except requests.RequestException:
        context.raise_if_cancelled()
        # Without the cause: its message quotes the address.
        raise TemporaryError("the manager gave no answer") from None
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        raise TemporaryError(
            f"the manager answered {answer.status_code}",
            retry_after=answer.headers.get("Retry-After"),
        )
    if answer.status_code != 200:
        raise PermanentError(
            f"the manager answered {answer.status_code}; look at RESTART_URL and RESTART_TOKEN"
        )
    return answer.json()
