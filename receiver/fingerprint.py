"""The fingerprint of a label set, as Alertmanager computes it; versions before 0.19 send none."""

from collections.abc import Mapping

_START = 14695981039346656037
_PRIME = 1099511628211
_MASK = (1 << 64) - 1


def fingerprint_of(labels: Mapping[str, str]) -> str:
    """Return the fingerprint of labels: FNV-1a in 64 bits over the sorted labels with a value.

    https://github.com/prometheus/common/blob/main/model/signature.go is the rule.
    """
    number = _START
    for name in sorted(labels):
        if labels[name]:
            for byte in b"%b\xff%b\xff" % (name.encode(), labels[name].encode()):
                number = ((number ^ byte) * _PRIME) & _MASK
    return f"{number:016x}"
