"""Cancel, deadline and slow answers: an attempt stops between requests and is back in time."""

import threading
import time

import pytest

from action_plugins.efs_emergency.clients import (
    CLIENTS,
    HURRIED,
    PATIENT,
    Clients,
    in_time,
    timeouts_for,
)
from receiver import DeadlineExceededError, RunCancelledError, TemporaryError
from receiver.context import Cancellation
from receiver.testing import make_context

FILE_SYSTEM = "fs-0123456789abcdef0"


@pytest.fixture
def cancellation():
    return Cancellation()


def test_timeouts_and_retries_are_pinned(efs):
    client = CLIENTS.get("us-east-1", PATIENT, make_context())
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (3, 10)
    assert config.retries == {"mode": "standard", "total_max_attempts": 3}


@pytest.mark.parametrize(
    ("remaining", "timeouts"), [(60, PATIENT), (14, PATIENT), (12, HURRIED), (0, HURRIED)]
)
def test_timeouts_fit_into_the_time_that_is_left(remaining, timeouts):
    assert timeouts_for(make_context(remaining_seconds=remaining)) == timeouts


def test_the_last_seconds_have_a_client_with_short_timeouts(efs):
    client = CLIENTS.get("us-east-1", HURRIED, make_context())
    assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (1, 2)
    assert client.meta.config.retries["total_max_attempts"] == 2


def test_a_cancelled_run_asks_aws_nothing(efs, run, cancellation):
    cancellation.cancel("the alert has resolved")
    with pytest.raises(RunCancelledError, match="the alert has resolved"):
        run(cancellation=cancellation)
    assert efs.requests == []


def test_a_run_without_time_asks_aws_nothing(efs, run):
    with pytest.raises(DeadlineExceededError):
        run(remaining_seconds=0)
    assert efs.requests == []


def test_a_cancel_while_describing_stops_before_anything_is_switched(efs, run, cancellation):
    efs.on_request = lambda operation: cancellation.cancel("paused")
    with pytest.raises(RunCancelledError, match="paused"):
        run(cancellation=cancellation)
    assert [request.operation for request in efs.requests] == ["DescribeFileSystems"]


def test_a_cancel_stops_the_retries_of_boto3_too(efs, run, cancellation):
    efs.fail("DescribeFileSystems", "InternalServerError", times=3)
    efs.on_request = lambda operation: cancellation.cancel("paused")
    with pytest.raises(RunCancelledError, match="paused"):
        run(cancellation=cancellation)
    assert len(efs.requests) == 1


def test_a_cancel_while_confirming_ends_the_waiting_at_once(efs, run, cancellation):
    efs.add(FILE_SYSTEM, updating_for=10**6)

    def cancel_at_the_first_look(operation):
        if len(efs.requests) == 3:
            cancellation.cancel("drained")

    efs.on_request = cancel_at_the_first_look
    with pytest.raises(RunCancelledError, match="drained"):
        run(cancellation=cancellation)
    assert len(efs.requests) == 3


def test_a_slow_answer_is_given_up_in_time_and_tried_again_by_the_receiver(efs, run):
    efs.delay("DescribeFileSystems", seconds=8, times=2)
    started = time.monotonic()
    # Less than two requests may take, so that it is not asked again; as much more as may be.
    with pytest.raises(TemporaryError, match="did not answer well within the time"):
        run(remaining_seconds=4.9)
    assert time.monotonic() - started < 4.9
    assert len(efs.requests) == 1


def test_a_retry_is_not_begun_when_its_answer_would_come_too_late(efs):
    client = CLIENTS.get("us-east-1", PATIENT, make_context())
    efs.fail("DescribeFileSystems", "InternalServerError", times=3)
    short = make_context(remaining_seconds=8)
    with (
        pytest.raises(TemporaryError, match="did not answer well"),
        in_time(short, PATIENT),
    ):
        client.describe_file_systems(FileSystemId=FILE_SYSTEM)
    assert len(efs.requests) == 1


def test_waiting_for_another_thread_ends_with_the_attempt(efs):
    clients = Clients()
    with (
        clients.session(make_context()),
        pytest.raises(DeadlineExceededError),
        clients.session(make_context(remaining_seconds=0.05)),
    ):
        pytest.fail("two threads had the session at once")


def test_all_threads_share_one_client_per_region(efs, fresh_clients):
    barrier = threading.Barrier(8)
    found = []

    def get(region):
        barrier.wait()
        found.append((region, CLIENTS.get(region, PATIENT, make_context())))

    regions = ["us-east-1", "eu-west-1"] * 4
    threads = [threading.Thread(target=get, args=(region,)) for region in regions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(client) for _, client in found}) == 2
    assert {client.meta.region_name for _, client in found} == {"us-east-1", "eu-west-1"}


def test_many_alerts_at_once_switch_their_own_file_systems(efs, run):
    names = [f"fs-{number:017x}" for number in range(8)]
    for name in names:
        efs.add(name)
    results = {}

    def switch(name):
        results[name] = run({"dimension_FileSystemId": name})["summary"]

    threads = [threading.Thread(target=switch, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(names, "switched to elastic")
    assert {efs.file_systems[name].throughput_mode for name in names} == {"elastic"}
