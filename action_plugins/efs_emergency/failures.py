"""What each failure of AWS means for the run: try again, when, or give up, and the cure.

The errors are those of botocore's model of EFS (a test walks it), of IAM and STS, and of the way
there. What nobody listed is judged by its HTTP status: 429 and 5xx may pass, other 4xx will not.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore import exceptions as boto
from botocore.exceptions import ClientError

from receiver import PermanentError, TemporaryError

STATE_CHANGE_SECONDS = 30.0
_LONGEST_MESSAGE = 500

_README = "see action_plugins/efs_emergency/README.md"
_CREDENTIALS = f"check the role or keys of this process; {_README}, Troubleshooting"

# Trying again cannot help, until a person has done what stands here.
PERMANENT: Mapping[str, str] = {
    "AccessDenied": f"allow the action in the IAM policy; {_README}, IAM policy",
    "AccessDeniedException": f"allow the action in the IAM policy; {_README}, IAM policy",
    "BadRequest": "AWS will not do this with this file system; its message says why",
    "FileSystemNotFound": "check the id, the region and the account of these credentials",
    "InvalidIdentityToken": f"IRSA: the cluster's OIDC provider must exist in IAM; {_README}",
    "OptInRequired": "this account is not subscribed to EFS in this region",
    "ThroughputLimitExceeded": "ask AWS to raise the throughput quota of this account",
    "ValidationException": "AWS will not do this with this file system; its message says why",
}
# Passes by itself, or with other credentials; seconds to wait where the backoff is too short.
TEMPORARY: Mapping[str, float | None] = {
    "IncorrectFileSystemLifeCycleState": STATE_CHANGE_SECONDS,
    "InsufficientThroughputCapacity": None,
    "InternalServerError": None,
    "IDPCommunicationError": None,
    "RequestLimitExceeded": None,
    "RequestThrottled": None,
    "ServiceUnavailable": None,
    "ServiceUnavailableException": None,
    "SlowDown": None,
    "Throttling": None,
    "ThrottlingException": None,
}
# These may be cured by credentials that were rotated since the client was made.
CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
MODE_CHANGED_TOO_SOON = "TooManyRequests"

_CREDENTIAL_ERRORS = (
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.NoCredentialsError,
    boto.SSOError,
    boto.TokenRetrievalError,
)
_CONFIGURATION_ERRORS = (
    boto.BaseEndpointResolverError,
    boto.ConfigNotFound,
    boto.ConfigParseError,
    boto.EndpointProviderError,
    boto.InvalidConfigError,
    boto.InvalidRegionError,
    boto.MissingDependencyException,
    boto.ParamValidationError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
)
# "Wait until 2023-12-29T12:51:32Z UTC and try again.":
# https://repost.aws/knowledge-center/efs-max-throughput-mode-changes
_WAIT_UNTIL = re.compile(r"[Ww]ait until (\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.\d+)?Z?")


def explain(
    error: Exception,
    doing: str,
    *,
    now: datetime | None = None,
    longest_wait: timedelta = timedelta(0),
) -> PermanentError | TemporaryError:
    """Return what to raise for a failure of boto3; `doing` names the call, for the message.

    A throughput mode may be changed again only 24 hours later, and AWS says when. That time is kept
    as the next attempt when it is at most `longest_wait` away; else the run fails now and says it,
    for an emergency should not wait in silence.
    """
    if isinstance(error, ClientError):
        return _explain_answer(error, now or datetime.now(UTC), longest_wait)
    said = f"{doing}: {type(error).__name__}: {_cut(str(error))}"
    if is_about_credentials(error):
        return TemporaryError(f"{said}; {_CREDENTIALS}")
    if isinstance(error, _CONFIGURATION_ERRORS):
        return PermanentError(f"{said}; mend the AWS configuration of this process")
    return TemporaryError(said)


def is_about_credentials(error: Exception) -> bool:
    """Whether a failure may be cured by reading the credentials afresh."""
    if isinstance(error, ClientError):
        return _code(error) in CREDENTIALS
    if isinstance(error, boto.BotoCoreError):
        return isinstance(error, _CREDENTIAL_ERRORS)
    # The token file of IRSA or of Pod Identity could not be read.
    return isinstance(error, OSError)


def wait_until(message: str) -> datetime | None:
    """Return the time that AWS' message says to wait until, None when it says none."""
    match = _WAIT_UNTIL.search(message)
    try:
        return datetime.fromisoformat(match[1]).replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def _explain_answer(
    error: ClientError, now: datetime, longest_wait: timedelta
) -> PermanentError | TemporaryError:
    answer: dict[str, Any] = error.response
    code = _code(error)
    message = str(answer.get("Error", {}).get("Message") or answer.get("Message") or "")
    metadata = answer.get("ResponseMetadata", {})
    said = f"{error.operation_name}: {code}: {_cut(message) or 'no message'}"
    if request_id := metadata.get("RequestId"):
        said += f" (request id {_cut(str(request_id))})"
    if code == MODE_CHANGED_TOO_SOON:
        return _explain_mode_change(said, wait_until(message), now, longest_wait)
    if code in CREDENTIALS:
        return TemporaryError(f"{said}; {_CREDENTIALS}")
    if code in TEMPORARY:
        return TemporaryError(said, retry_after=TEMPORARY[code])
    if error.operation_name.startswith("AssumeRole") and code.startswith("AccessDenied"):
        return PermanentError(f"{said}; mend the trust policy of the role; {_README}, IRSA")
    if code in PERMANENT:
        return PermanentError(f"{said}; {PERMANENT[code]}")
    status = int(metadata.get("HTTPStatusCode") or 0)
    if 400 <= status < 500 and status != 429:
        return PermanentError(said)
    return TemporaryError(said)


def _explain_mode_change(
    said: str, until: datetime | None, now: datetime, longest_wait: timedelta
) -> PermanentError | TemporaryError:
    if until is None:
        return PermanentError(f"{said}; the throughput mode was changed in the last 24 hours")
    if until - now <= longest_wait:
        # AWS' clock and ours can differ: never at once, or the attempts are used up in a moment.
        soonest = now + timedelta(seconds=STATE_CHANGE_SECONDS)
        return TemporaryError(said, retry_at=max(until, soonest))
    return PermanentError(
        f"{said}; the throughput mode was changed in the last 24 hours and AWS allows the next "
        f"change at {until.isoformat()}: a person must bridge the time, by raising the provisioned "
        "throughput if the mode is provisioned, else by moving load away"
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "Unknown")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
