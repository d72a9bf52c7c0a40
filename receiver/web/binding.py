"""Where the receiver may listen without credentials: it fails closed."""

from receiver.errors import SettingsError
from receiver.settings import Settings


def check_bind(settings: Settings) -> None:
    """Raise SettingsError for an address others can reach, without credentials or a word on it."""
    if settings.bind.is_loopback or settings.submit_token or settings.auth == "none":
        return
    raise SettingsError(
        [
            f"RECEIVER_BIND: {settings.bind} can be reached by others, and there are no "
            "credentials; set RECEIVER_SUBMIT_TOKEN or RECEIVER_SUBMIT_TOKEN_FILE, or "
            "RECEIVER_AUTH=none if something else protects it"
        ]
    )
