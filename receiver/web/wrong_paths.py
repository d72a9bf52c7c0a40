"""What is answered on a wrong path: where the webhook is, and what the path looks like."""

import re
from difflib import get_close_matches

_WHERE = "alerts are posted to /webhook, or to /webhook/<action>"
# Prometheus posts there, with or without the prefix of an Alertmanager behind a proxy.
_ALERTMANAGER_API = re.compile(r"(.*/)?(api/v[12]/)?alerts")


def describe_wrong_path(method: str, path: str) -> str:
    """Return what to write about a path that has no page, or none for this method."""
    if hint := _describe(path):
        return f"{hint}; {_WHERE}"
    if method != "POST" and path.rstrip("/") == "/webhook":
        return f"the method is {method[:20]}, not POST; {_WHERE}"
    return f"there is nothing for this method and path here; {_WHERE}"


def _describe(path: str) -> str:
    parts = path.strip("/").split("/")
    name = "/".join(parts).lower()
    if not name:
        return "the URL has no path"
    if _ALERTMANAGER_API.fullmatch(name):
        return (
            "the path is that of Alertmanager's own API; Prometheus sends to Alertmanager, whose "
            "webhook_configs name the receiver"
        )
    if "" in parts or path.startswith("//"):
        return "the path has an empty part, //"
    if parts[0] == "webhook":
        return "an action's name has no slash" if len(parts) > 2 else ""
    if "webhook" in parts:
        return "the path has a prefix before /webhook, which a proxy has to remove"
    if get_close_matches(parts[0].lower(), ["webhook"], cutoff=0.7):
        return "the path resembles /webhook"
    return ""
