"""From an alert's labels and the operator's options to the file system that is meant. Pure.

The label is that of this very alert: asking Prometheus for the metric again, and taking the first
series of the answer, is how another file system gets switched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from action_plugins.efs_emergency.names import FileSystemName, is_region, parse_name, shown
from action_plugins.efs_emergency.options import ALLOWED, FALLBACK, STATIC_ID, Options
from receiver import PermanentError

REGION_LABEL = "region"
_SHOWN_LABELS = 20


@dataclass(frozen=True)
class Target:
    """The file system to switch, and what named it.

    `region_label` is the alert's own label `region`, when it has the form of a region.
    """

    name: FileSystemName
    named_by: str
    region_label: str | None = None


def find_target(labels: Mapping[str, str], options: Options) -> Target:
    """Return the file system that an alert means.

    Raises PermanentError when the alert names none, names it wrongly, or names one that may not
    be switched: the same alert can never mean another.
    """
    name, named_by = _named(labels, options)
    if options.allowed:
        covering = [one for one in options.allowed if one.covers(name)]
        if not covering:
            raise PermanentError(
                f"{name}, named by {named_by}, is not among {ALLOWED}; add it there if it may be "
                "switched"
            )
        if len(covering) == 1:
            # Where the alert says only an id, the operator's ARN says where that is.
            name = replace(
                name,
                region=name.region or covering[0].region,
                account=name.account or covering[0].account,
            )
    region = labels.get(REGION_LABEL, "")
    return Target(name, named_by, region if is_region(region) else None)


def _named(labels: Mapping[str, str], options: Options) -> tuple[FileSystemName, str]:
    for label in options.labels:
        # To Prometheus an empty label and an absent one are the same.
        if value := labels.get(label, ""):
            try:
                return parse_name(value), f"the label {label}"
            except ValueError as error:
                raise PermanentError(
                    f"the label {label} of the alert does not name a file system: {error}"
                ) from None
    if options.file_system is not None and (options.falls_back or not options.labels):
        return options.file_system, STATIC_ID
    present = [shown(label) for label in sorted(labels)]
    more = ", ..." if len(present) > _SHOWN_LABELS else ""
    raise PermanentError(
        f"the alert has no label {' or '.join(options.labels)}; it has "
        f"{', '.join(present[:_SHOWN_LABELS]) or 'none'}{more}; keep that label in the rule's "
        f"expression, or set {STATIC_ID} and {FALLBACK}=true"
    )
