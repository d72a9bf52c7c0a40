"""What may be written to a terminal: nothing in it acts on it."""


def safe(value: object) -> str:
    """Return a text of others, of alerts or of a command line, as it may be shown."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else repr(text)[1:-1]
