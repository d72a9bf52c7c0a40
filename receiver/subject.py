"""What a run is about: the target that limits count by, and the key of its identity. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from receiver.policies import Policy

# So that no label's text can pass for another label.
_ESCAPED = re.compile(r"[\\,=]")
# Indexed, and an index entry has a limit.
_LONGEST_TARGET = 250


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def target_of(policy: Policy, source: str, fingerprint: str, labels: Mapping[str, str]) -> str:
    """Return what a run acts on, as the limits count it: by default the alert itself."""
    named = [
        f"{label}={_ESCAPED.sub(_escape, labels[label])}"
        for label in policy.target_labels
        if labels.get(label)
    ]
    target = ",".join(named)[:_LONGEST_TARGET] if named else fingerprint
    return f"{source}/{target}" if source else target


def idempotency_key(
    source: str, fingerprint: str, action: str, starts_at: datetime, kind: str, ordinal: int
) -> str:
    """Return the key of a run: the same at every attempt, another for every other identity."""
    begun = starts_at.astimezone(UTC).isoformat()
    identity = json.dumps([source, fingerprint, action, begun, kind, ordinal])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
