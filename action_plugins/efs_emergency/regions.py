"""Which AWS region a file system is in.

boto3 by itself reads `AWS_DEFAULT_REGION` and the profile, but neither `AWS_REGION` (which EKS sets
and the other SDKs read) nor the instance metadata.
"""

import http.client
import logging
import os
from typing import Any
from urllib.parse import urlsplit

from action_plugins.efs_emergency.names import is_region
from action_plugins.efs_emergency.options import Options
from action_plugins.efs_emergency.targets import REGION_LABEL, Target
from receiver import PermanentError, TemporaryError

METADATA_TIMEOUT_SECONDS = 1.0
_METADATA_IPV4 = "http://169.254.169.254"
_METADATA_IPV6 = "http://[fd00:ec2::254]"
_CURE = "set AWS_REGION, or name the file system by its ARN"


def choose_region(
    target: Target, options: Options, session: Any, log: "logging.LoggerAdapter[Any]"
) -> str:
    """Return the region to call.

    The first of: the ARN, the alert's label `region`, AWS_REGION, AWS_DEFAULT_REGION, the profile,
    IMDSv2. It becomes part of a host name, so alert text only chooses among the regions that the
    SDK or the operator knows. Raises PermanentError for an ARN elsewhere, or when nothing names a
    region; TemporaryError when the instance metadata, asked last, does not say.
    """
    if target.name.region is not None:
        if not _is_known(target.name.region, options, session):
            raise PermanentError(
                f"{target.name} (named by {target.named_by}): that region is not known to this "
                "version of boto3; if it exists, set AWS_REGION to it, or update boto3"
            )
        return target.name.region
    if target.region_label is not None:
        if _is_known(target.region_label, options, session):
            return target.region_label
        # Prometheus' external labels often hold a `region` of their own.
        log.warning(
            "the alert's region label is not an aws region: ignored",
            extra={"label": REGION_LABEL, "region": target.region_label},
        )
    region = options.region or session.get_config_variable("region")
    if region:
        return str(region)
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise PermanentError(f"nothing names the region of {target.name}; {_CURE}")
    region = region_of_this_instance(metadata_endpoint(session))
    if region is None:
        raise TemporaryError(
            f"nothing names the region of {target.name}, and the instance metadata (IMDSv2) did "
            f"not say; {_CURE}"
        )
    return region


def metadata_endpoint(session: Any) -> str:
    """Return the URL of the instance metadata, as the SDK's own settings have it."""
    endpoint = session.get_config_variable("ec2_metadata_service_endpoint")
    if endpoint:
        return str(endpoint)
    mode = str(session.get_config_variable("ec2_metadata_service_endpoint_mode") or "").lower()
    return _METADATA_IPV6 if mode == "ipv6" else _METADATA_IPV4


def region_of_this_instance(endpoint: str) -> str | None:
    """Return what IMDSv2 says, None when it does not answer within a second per request.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """
    parts = urlsplit(endpoint)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=METADATA_TIMEOUT_SECONDS
    )
    try:
        token = _ask(
            connection, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        headers = {"X-aws-ec2-metadata-token": token}
        region = _ask(connection, "GET", "/latest/meta-data/placement/region", headers)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return region if is_region(region) else None


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]
) -> str:
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    text = response.read(1024).decode("ascii")
    if response.status != 200:
        raise http.client.HTTPException(f"{method} {path}: status {response.status}")
    return text.strip()


def _is_known(region: str, options: Options, session: Any) -> bool:
    return region in options.known_regions or any(
        region in session.get_available_regions("efs", partition_name=partition)
        for partition in session.get_available_partitions()
    )
