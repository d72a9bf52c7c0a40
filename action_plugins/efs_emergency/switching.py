"""The action itself: describe, decide, update, confirm.

Imported at the first run only, for it brings boto3 along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from action_plugins.efs_emergency import failures
from action_plugins.efs_emergency.clients import CLIENTS, Clients, in_time, timeouts_for
from action_plugins.efs_emergency.names import shown
from action_plugins.efs_emergency.options import Options, read_options
from action_plugins.efs_emergency.regions import choose_region
from action_plugins.efs_emergency.targets import Target, find_target
from receiver import ActionContext, PermanentError, TemporaryError

ELASTIC = "elastic"
# How long to wait before each look at a file system that is being updated, in seconds.
_PAUSES = (0.5, 1.0, 2.0, 4.0)
_LAST_PAUSE = 5.0
# What is left of an attempt for the way back: an answer in time is better than being cut off.
_RESERVE_SECONDS = 1.0

COSTS = (
    "elastic throughput is billed for every GB read and written, on top of storage (an example, "
    "not your price: at 0.03 USD per GB read and 0.07 USD per GB written, 1000 GB of each cost "
    "100 USD; see https://aws.amazon.com/efs/pricing/)"
)


@dataclass(frozen=True)
class FileSystem:
    """What DescribeFileSystems said of one file system, as far as it matters here."""

    id: str
    owner: str
    state: str
    performance_mode: str
    throughput_mode: str
    provisioned_mibps: float | None

    @property
    def throughput(self) -> str:
        """The throughput mode in words, with its amount when it is provisioned."""
        if self.provisioned_mibps is None:
            return self.throughput_mode
        return f"{self.throughput_mode} ({self.provisioned_mibps:g} MiB/s)"


@dataclass
class Efs:
    """EFS in one region, as one attempt uses it; `request_ids` collects what AWS answered."""

    region: str
    context: ActionContext
    options: Options
    clients: Clients
    request_ids: dict[str, str] = field(default_factory=dict)

    def describe(self, target: Target, step: str) -> FileSystem:
        """Return the file system as it is now; raises as `failures.explain`."""
        answer = self._call("describe_file_systems", step, FileSystemId=target.name.id)
        file_system = read_description(answer)
        if file_system.id != target.name.id:
            raise TemporaryError(f"EFS was asked for {target.name} and described another")
        if target.name.account not in (None, file_system.owner):
            raise PermanentError(
                f"{target.name} belongs to the account {shown(file_system.owner)}, not to "
                f"{target.name.account} as {target.named_by} says; it was left as it is"
            )
        return file_system

    def update(self, target: Target) -> None:
        """Ask for elastic throughput; raises as `failures.explain`."""
        self._call(
            "update_file_system", "update", FileSystemId=target.name.id, ThroughputMode=ELASTIC
        )

    def _call(self, operation: str, step: str, **parameters: str) -> Mapping[str, Any]:
        timeouts = timeouts_for(self.context)
        client = self.clients.get(self.region, timeouts, self.context)
        try:
            with in_time(self.context, timeouts):
                answer: Mapping[str, Any] = getattr(client, operation)(**parameters)
        except (ClientError, BotoCoreError, ResponseParserError, OSError) as error:
            if failures.is_about_credentials(error):
                self.clients.forget()
            # Without the cause: the failure says all that it does, and is kept as text.
            raise failures.explain(
                error, operation, longest_wait=self.options.longest_wait
            ) from None
        metadata = answer.get("ResponseMetadata", {})
        self.request_ids[step] = str(metadata.get("RequestId", ""))
        return answer


def switch(context: ActionContext, clients: Clients = CLIENTS) -> dict[str, Any]:
    """Switch the alert's file system to elastic throughput, if it is not; return what happened."""
    efs, target = _prepare(context, clients)
    before = efs.describe(target, "describe")
    after = before
    if must_switch(before):
        # The last moment to stop: from here on the file system changes.
        context.raise_if_cancelled()
        after = _update(efs, target, before)
    summary = "already elastic" if after is before else "switched to elastic"
    context.log.info(summary, extra=_fields(target, efs, after))
    result: dict[str, Any] = {
        "summary": summary,
        "file_system": target.name.id,
        "named_by": target.named_by,
        "region": efs.region,
        "mode_before": before.throughput_mode,
        "mode_after": after.throughput_mode,
        "request_ids": efs.request_ids,
    }
    if before.provisioned_mibps is not None and after is not before:
        # Going back needs it, and AWS forgets it.
        result["provisioned_mibps_before"] = before.provisioned_mibps
    return result


def outlook(context: ActionContext, clients: Clients = CLIENTS) -> str:
    """Say what `switch` would do now, and what that costs; asks AWS, changes nothing."""
    efs, target = _prepare(context, clients)
    now = efs.describe(target, "describe")
    where = f"{target.name.id} in {efs.region} (named by {target.named_by})"
    try:
        if not must_switch(now):
            return f"would change nothing: {where} is already elastic"
    except TemporaryError as error:
        return f"would try again later: {error}"
    except PermanentError as error:
        return f"would fail: {error}"
    return (
        f"would switch {where} from {now.throughput} to elastic throughput: {COSTS}; "
        "only a person switches it back"
    )


def must_switch(file_system: FileSystem) -> bool:
    """Return whether there is anything to do; raise when it cannot be done, now or ever. Pure.

    Elastic throughput exists in the General Purpose performance mode only, and that mode cannot be
    changed: https://docs.aws.amazon.com/efs/latest/ug/performance.html
    """
    if file_system.throughput_mode == ELASTIC:
        return False
    if file_system.performance_mode == "maxIO":
        raise PermanentError(
            f"{file_system.id} has the performance mode maxIO, which cannot be elastic and cannot "
            "be changed: raise its throughput with the provisioned mode, or move the data to a "
            "General Purpose file system"
        )
    if file_system.state != "available":
        raise TemporaryError(
            f"{file_system.id} is {shown(file_system.state)}, not available; its throughput mode "
            "can be changed only then",
            retry_after=failures.STATE_CHANGE_SECONDS,
        )
    return True


def read_description(answer: Mapping[str, Any]) -> FileSystem:
    """Return the one file system of an answer; raise TemporaryError when the answer is broken."""
    found = answer.get("FileSystems") or []
    if len(found) != 1:
        raise TemporaryError(f"EFS described {len(found)} file systems instead of one")
    described = found[0]
    missing = [
        key
        for key in ("FileSystemId", "LifeCycleState", "OwnerId", "PerformanceMode")
        if not described.get(key)
    ]
    if missing:
        raise TemporaryError(f"EFS' answer lacks {', '.join(missing)}")
    amount = described.get("ProvisionedThroughputInMibps")
    return FileSystem(
        id=described["FileSystemId"],
        owner=described["OwnerId"],
        state=described["LifeCycleState"],
        performance_mode=described["PerformanceMode"],
        # Optional in the model; bursting is its default.
        throughput_mode=described.get("ThroughputMode") or "bursting",
        provisioned_mibps=None if amount is None else float(amount),
    )


def _prepare(context: ActionContext, clients: Clients) -> tuple[Efs, Target]:
    options = read_options(context.settings)
    target = find_target(context.alert.labels, options)
    context.raise_if_cancelled()
    with clients.session(context) as session:
        region = choose_region(target, options, session, context.log)
    return Efs(region, context, options, clients), target


def _update(efs: Efs, target: Target, before: FileSystem) -> FileSystem:
    try:
        efs.update(target)
    except PermanentError:
        # boto3 sends again what was not answered, and two alerts can mean one file system: AWS may
        # refuse a second change because the first has taken effect.
        now = efs.describe(target, "confirm")
        if now.throughput_mode != ELASTIC:
            raise
        efs.context.log.warning(
            "the update was refused, but the file system is elastic",
            extra=_fields(target, efs, now),
        )
        return now
    efs.context.log.info(
        "the switch to elastic throughput was accepted", extra=_fields(target, efs, before)
    )
    return _confirm(efs, target)


def _confirm(efs: Efs, target: Target) -> FileSystem:
    """Return the file system once its mode reads elastic; raise TemporaryError when time is up.

    The next attempt then finds it elastic, and is a success.
    """
    for pause in chain(_PAUSES, repeat(_LAST_PAUSE)):
        file_system = efs.describe(target, "confirm")
        if file_system.throughput_mode == ELASTIC:
            return file_system
        efs.context.raise_if_cancelled()
        if efs.context.remaining_seconds() < pause + _RESERVE_SECONDS:
            break
        efs.context.sleep(pause)
    raise TemporaryError(
        f"EFS accepted the switch of {target.name.id} to elastic throughput (request id "
        f"{efs.request_ids.get('update')}), but the mode still reads "
        f"{file_system.throughput_mode} and the state {file_system.state}",
        retry_after=failures.STATE_CHANGE_SECONDS,
    )


def _fields(target: Target, efs: Efs, file_system: FileSystem) -> dict[str, Any]:
    return {
        "file_system": target.name.id,
        "region": efs.region,
        "throughput_mode": file_system.throughput_mode,
        "request_ids": dict(efs.request_ids),
    }
