"""Durations as text. Pure."""

from datetime import timedelta


def format_duration(duration: timedelta) -> str:
    """Return a duration as a user would write it: `1h30m`."""
    seconds = round(duration.total_seconds())
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, length)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
