"""The action against a fake of EFS over HTTP: what it does, leaves alone and records."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from receiver import PermanentError, TemporaryError

FILE_SYSTEM = "fs-0123456789abcdef0"
OTHER_FILE_SYSTEM = "fs-0fedcba9876543210"


def operations(efs):
    return [request.operation for request in efs.requests]


def test_a_bursting_file_system_is_switched_and_the_result_says_what_happened(efs, run):
    result = run()

    assert efs.file_systems[FILE_SYSTEM].throughput_mode == "elastic"
    assert result == {
        "summary": "switched to elastic",
        "file_system": FILE_SYSTEM,
        "named_by": "the label dimension_FileSystemId",
        "region": "us-east-1",
        "mode_before": "bursting",
        "mode_after": "elastic",
        "request_ids": {
            "describe": efs.requests[0].request_id,
            "update": efs.requests[1].request_id,
            "confirm": efs.requests[-1].request_id,
        },
    }
    assert operations(efs)[:2] == ["DescribeFileSystems", "UpdateFileSystem"]


def test_only_elastic_is_ever_asked_for(efs, run):
    run()
    (update,) = efs.seen("UpdateFileSystem")
    assert update.parameters == {"FileSystemId": FILE_SYSTEM, "ThroughputMode": "elastic"}


def test_a_provisioned_file_system_is_switched_and_its_amount_is_kept_for_going_back(efs, run):
    efs.add(FILE_SYSTEM, throughput_mode="provisioned", provisioned_mibps=64.0)
    result = run()
    assert (result["mode_before"], result["provisioned_mibps_before"]) == ("provisioned", 64.0)


def test_the_switch_is_confirmed_by_looking_until_the_mode_reads_elastic(efs, run):
    efs.add(FILE_SYSTEM, updating_for=2)
    assert run()["mode_after"] == "elastic"
    assert operations(efs) == [
        "DescribeFileSystems",
        "UpdateFileSystem",
        "DescribeFileSystems",
        "DescribeFileSystems",
        "DescribeFileSystems",
    ]


def test_what_is_elastic_already_is_a_success_and_is_not_touched(efs, run):
    efs.add(FILE_SYSTEM, throughput_mode="elastic")
    result = run()
    assert result["summary"] == "already elastic"
    assert (result["mode_before"], result["mode_after"]) == ("elastic", "elastic")
    assert operations(efs) == ["DescribeFileSystems"]


def test_a_second_run_after_a_switch_finds_it_done(efs, run):
    run()
    assert run()["summary"] == "already elastic"
    assert len(efs.seen("UpdateFileSystem")) == 1


def test_max_io_fails_for_good_and_says_why_without_an_update(efs, run):
    efs.add(FILE_SYSTEM, performance_mode="maxIO")
    with pytest.raises(PermanentError, match="maxIO, which cannot be elastic and cannot be chang"):
        run()
    assert operations(efs) == ["DescribeFileSystems"]


@pytest.mark.parametrize("state", ["creating", "updating", "deleting", "deleted", "error"])
def test_what_is_not_available_is_left_alone_and_tried_again_later(efs, run, state):
    efs.add(FILE_SYSTEM, state=state)
    with pytest.raises(TemporaryError, match=f"'{state}', not available") as caught:
        run()
    assert caught.value.retry_after == timedelta(seconds=30)
    assert operations(efs) == ["DescribeFileSystems"]


def test_only_the_file_system_that_this_alert_names_is_switched(efs, run):
    efs.add(OTHER_FILE_SYSTEM)
    run({"dimension_FileSystemId": OTHER_FILE_SYSTEM})
    assert efs.file_systems[OTHER_FILE_SYSTEM].throughput_mode == "elastic"
    assert efs.file_systems[FILE_SYSTEM].throughput_mode == "bursting"


def test_an_alert_without_the_label_switches_nothing(efs, run):
    with pytest.raises(PermanentError, match="no label dimension_FileSystemId"):
        run({}, {"EFS_FILE_SYSTEM_ID": FILE_SYSTEM})
    assert efs.requests == []


def test_an_alert_without_the_label_means_the_static_id_when_that_was_asked_for(efs, run):
    result = run({}, {"EFS_FILE_SYSTEM_ID": FILE_SYSTEM, "EFS_FALLBACK_TO_STATIC": "true"})
    assert result["named_by"] == "EFS_FILE_SYSTEM_ID"
    assert efs.file_systems[FILE_SYSTEM].throughput_mode == "elastic"


def test_an_arn_is_called_by_its_id_in_its_region(efs, run):
    efs.add(FILE_SYSTEM, region="eu-west-2")
    arn = f"arn:aws:elasticfilesystem:eu-west-2:111122223333:file-system/{FILE_SYSTEM}"
    assert run({"dimension_FileSystemId": arn})["region"] == "eu-west-2"
    assert {request.parameters["FileSystemId"] for request in efs.requests} == {FILE_SYSTEM}


def test_an_arn_of_another_account_than_the_owner_switches_nothing(efs, run):
    efs.file_systems[FILE_SYSTEM].account = "444455556666"
    arn = f"arn:aws:elasticfilesystem:us-east-1:111122223333:file-system/{FILE_SYSTEM}"
    with pytest.raises(PermanentError, match="belongs to the account '444455556666'"):
        run({"dimension_FileSystemId": arn})
    assert operations(efs) == ["DescribeFileSystems"]


def test_a_file_system_of_another_region_is_not_found(efs, run):
    with pytest.raises(PermanentError, match=r"FileSystemNotFound.*check the id, the region"):
        run(environment={"AWS_REGION": "eu-west-1"})


def test_a_mode_changed_too_recently_fails_at_once_and_names_the_time(efs, run):
    changed_at = datetime.now(UTC) - timedelta(hours=2)
    efs.add(FILE_SYSTEM, mode_changed_at=changed_at)
    with pytest.raises(PermanentError, match="allows the next change at") as caught:
        run()
    assert f"{changed_at + timedelta(hours=24):%Y-%m-%dT%H:%M:%S}+00:00" in str(caught.value)
    assert len(efs.seen("UpdateFileSystem")) == 1


def test_a_mode_that_may_be_changed_soon_is_tried_again_at_the_time_that_aws_says(efs, run):
    changed_at = datetime.now(UTC) - timedelta(hours=23, minutes=30)
    efs.add(FILE_SYSTEM, mode_changed_at=changed_at)
    with pytest.raises(TemporaryError) as caught:
        run()
    allowed_at = (changed_at + timedelta(hours=24)).replace(microsecond=0)
    assert caught.value.retry_at == allowed_at


def test_how_long_a_run_waits_for_aws_is_set_by_the_operator(efs, run):
    efs.add(FILE_SYSTEM, mode_changed_at=datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(TemporaryError):
        run(environment={"EFS_LONGEST_WAIT": "1d"})
    with pytest.raises(PermanentError):
        run(environment={"EFS_LONGEST_WAIT": "0s"})


def test_a_file_system_that_changes_state_in_between_is_tried_again_later(efs, run):
    def start_another_update(operation):
        if operation == "UpdateFileSystem":
            efs.file_systems[FILE_SYSTEM].state = "updating"

    efs.on_request = start_another_update
    with pytest.raises(TemporaryError, match="IncorrectFileSystemLifeCycleState") as caught:
        run()
    assert caught.value.retry_after == timedelta(seconds=30)


def test_an_accepted_switch_that_cannot_be_confirmed_in_time_is_confirmed_by_the_next_attempt(
    efs, run
):
    efs.add(FILE_SYSTEM, updating_for=10**6)
    with pytest.raises(TemporaryError, match=r"accepted the switch .* still reads bursting"):
        run(remaining_seconds=4)
    efs.file_systems[FILE_SYSTEM].descriptions_left = 0
    assert run()["summary"] == "already elastic"
    assert len(efs.seen("UpdateFileSystem")) == 1


def test_an_update_that_is_refused_because_it_has_been_made_already_is_a_success(efs, run):
    def be_overtaken(operation):
        if operation == "UpdateFileSystem":
            efs.file_systems[FILE_SYSTEM].throughput_mode = "elastic"

    efs.on_request = be_overtaken
    efs.fail("UpdateFileSystem", "TooManyRequests")
    result = run()
    assert (result["mode_before"], result["mode_after"]) == ("bursting", "elastic")
    assert list(result["request_ids"]) == ["describe", "confirm"]


@pytest.mark.parametrize("how", ["text", "empty"])
def test_an_answer_that_is_none_is_tried_again_and_nothing_is_switched(efs, run, how):
    efs.garble("DescribeFileSystems", how)
    with pytest.raises(TemporaryError, match="described 0 file systems"):
        run()
    assert operations(efs) == ["DescribeFileSystems"]


@pytest.mark.parametrize("how", ["html", "reset"])
def test_boto3_tries_again_when_an_answer_is_lost_on_the_way(efs, run, how):
    efs.garble("DescribeFileSystems", how)
    assert run()["summary"] == "switched to elastic"


def test_an_answer_that_is_cut_off_is_asked_for_again(efs, run):
    efs.garble("DescribeFileSystems", "cut")
    # Whether boto3 notices depends on its version; if it does not, the receiver tries again.
    with suppress(TemporaryError):
        run()
    run()
    assert efs.file_systems[FILE_SYSTEM].throughput_mode == "elastic"
    assert len(efs.seen("UpdateFileSystem")) == 1


def test_a_lost_answer_to_the_update_does_not_lose_the_switch(efs, run):
    efs.garble("UpdateFileSystem", "text")
    with pytest.raises(TemporaryError, match="still reads bursting"):
        run(remaining_seconds=4)
    assert run()["summary"] == "switched to elastic"


def test_being_throttled_for_a_moment_goes_unnoticed(efs, run):
    efs.fail("UpdateFileSystem", "ThrottlingException", times=1)
    assert run()["summary"] == "switched to elastic"
    assert len(efs.seen("UpdateFileSystem")) == 2


def test_requests_are_sent_three_times_at_most(efs, run):
    efs.fail("DescribeFileSystems", "InternalServerError", times=9)
    with pytest.raises(TemporaryError, match="InternalServerError: because"):
        run()
    assert len(efs.requests) == 3


def test_a_refusal_names_the_request_and_the_cure(efs, run):
    efs.fail("UpdateFileSystem", "AccessDeniedException", "User is not authorized")
    with pytest.raises(PermanentError) as caught:
        run()
    assert str(caught.value) == (
        "UpdateFileSystem: AccessDeniedException: User is not authorized (request id "
        f"{efs.seen('UpdateFileSystem')[0].request_id}); allow the action in the IAM policy; "
        "see action_plugins/efs_emergency/README.md, IAM policy"
    )


def test_cloudtrail_shows_who_called(efs, run):
    run()
    assert "alert-receiver/efs_emergency" in efs.requests[0].user_agent


def test_the_dry_run_says_what_would_change_and_what_it_costs_and_changes_nothing(efs, run):
    sentence = run(hook="describe")
    assert sentence.startswith(
        f"would switch {FILE_SYSTEM} in us-east-1 (named by the label dimension_FileSystemId) from "
        "bursting to elastic throughput: elastic throughput is billed for every GB read and written"
    )
    assert "an example, not your price" in sentence
    assert sentence.endswith("only a person switches it back")
    assert operations(efs) == ["DescribeFileSystems"]
    assert efs.file_systems[FILE_SYSTEM].throughput_mode == "bursting"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"throughput_mode": "elastic"}, "would change nothing: ", id="elastic"),
        pytest.param({"performance_mode": "maxIO"}, "would fail: ", id="max-io"),
        pytest.param({"state": "updating"}, "would try again later: ", id="updating"),
        pytest.param(
            {"throughput_mode": "provisioned", "provisioned_mibps": 64.0},
            f"would switch {FILE_SYSTEM} in us-east-1 (named by the label dimension_FileSystemId) "
            "from provisioned (64 MiB/s) to elastic",
            id="provisioned",
        ),
    ],
)
def test_the_dry_run_says_when_it_would_be_different(efs, run, changes, sentence):
    efs.add(FILE_SYSTEM, **changes)
    assert run(hook="describe").startswith(sentence)
    assert operations(efs) == ["DescribeFileSystems"]
