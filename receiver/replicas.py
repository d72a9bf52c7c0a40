"""Finds alerts that differ only in the label that names one Prometheus of a pair. Pure.

A pair must drop this label before it sends alerts. Otherwise Alertmanager takes each alert of the
pair for two, and each action runs twice. The receiver does not guess which alerts are meant; it
warns, and names the cure.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from receiver.alertmanager import Alert

# What the documentation of Prometheus, its operator, Thanos, Cortex and Mimir call this label.
REPLICA_LABELS = frozenset(
    {
        "replica",
        "prometheus_replica",
        "__replica__",
        "rule_replica",
        "ruler_replica",
        "thanos_ruler_replica",
        "receive_replica",
    }
)
_KEPT_REPLICAS = 8
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class ReplicaLabel:
    """A label that makes two alerts of one, and the name of the alerts."""

    label: str
    alert_name: str

    @property
    def cure(self) -> str:
        """Return the lines for prometheus.yml, as YAML that fits into one line."""
        return (
            f'alerting: {{alert_relabel_configs: [{{action: labeldrop, regex: "{self.label}"}}]}}'
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """What the alerts of one notification show.

    `alerts` counts those that differ from another firing alert in a replica label alone. `new` are
    the labels and names that no earlier notification showed.
    """

    alerts: int = 0
    new: tuple[ReplicaLabel, ...] = ()


_NOTHING = Findings()


class ReplicaWatch:
    """Remembers the latest firing alerts that have a replica label; memory is bounded."""

    def __init__(self, kept_alerts: int = 10_000, kept_warnings: int = 1_000) -> None:
        """Start without alerts; a warning that is no longer kept is given again."""
        self._kept_alerts = kept_alerts
        self._kept_warnings = kept_warnings
        # By source and all other labels, the replicas that fire: hashes, since texts can be long.
        self._firing: OrderedDict[int, tuple[tuple[int, ...], ...]] = OrderedDict()
        self._told: OrderedDict[ReplicaLabel, None] = OrderedDict()

    def look(self, source: str, alerts: Iterable[Alert]) -> Findings:
        """Return what these alerts of a source show, together with those before."""
        with_label = [one for one in alerts if not REPLICA_LABELS.isdisjoint(one.labels)]
        if not with_label:
            return _NOTHING
        number, new = 0, []
        for alert in with_label:
            found = self._differing(source, alert)
            number += found is not None
            if found is not None and found not in self._told:
                new.append(found)
                self._told[found] = None
                if len(self._told) > self._kept_warnings:
                    self._told.popitem(last=False)
        return Findings(number, tuple(new))

    def _differing(self, source: str, alert: Alert) -> ReplicaLabel | None:
        names = sorted(REPLICA_LABELS & alert.labels.keys())
        others = frozenset(item for item in alert.labels.items() if item[0] not in REPLICA_LABELS)
        key = hash((source, *names, others))
        replica = tuple(hash(alert.labels[name]) for name in names)
        known = self._firing.pop(key, ())
        peers = tuple(one for one in known if one != replica)
        firing = peers if alert.is_resolved else (*peers[1 - _KEPT_REPLICAS :], replica)
        if firing:
            self._firing[key] = firing
            if len(self._firing) > self._kept_alerts:
                self._firing.popitem(last=False)
        if alert.is_resolved or not peers:
            return None
        label = next(
            name
            for name, mine, other in zip(names, replica, peers[-1], strict=True)
            if mine != other
        )
        return ReplicaLabel(label, alert.name[:_LONGEST_NAME])
