"""Which file system an alert means: ids, ARNs, labels, the static id, the allow-list."""

from datetime import timedelta

import botocore.loaders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from action_plugins.efs_emergency.names import (
    LONGEST,
    PATTERN,
    FileSystemName,
    is_region,
    parse_name,
)
from action_plugins.efs_emergency.options import Options, read_options
from action_plugins.efs_emergency.targets import find_target
from receiver import PermanentError

ONE = "fs-0123456789abcdef0"
OTHER = "fs-0fedcba9876543210"
ARN = f"arn:aws:elasticfilesystem:eu-west-1:111122223333:file-system/{ONE}"


def options(**changes):
    """Return options as `read_options` makes them of these settings."""
    return read_options({"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": ("fs",), **changes})


def test_the_pattern_is_that_of_the_service_model():
    model = botocore.loaders.create_loader().load_service_model("efs", "service-2")
    shape = model["shapes"]["FileSystemId"]
    assert (shape["pattern"], shape["max"]) == (PATTERN, LONGEST)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("fs-01234567", FileSystemName("fs-01234567"), id="short-id"),
        pytest.param(ONE, FileSystemName(ONE), id="long-id"),
        pytest.param(ARN, FileSystemName(ONE, "eu-west-1", "111122223333"), id="arn"),
        pytest.param(
            f"arn:aws-us-gov:elasticfilesystem:us-gov-west-1:111122223333:file-system/{ONE}",
            FileSystemName(ONE, "us-gov-west-1", "111122223333"),
            id="another-partition",
        ),
    ],
)
def test_ids_and_arns_are_read(text, name):
    assert parse_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("fs-", id="no-digits"),
        pytest.param("fs-0123456", id="too-short"),
        pytest.param("fs-0123456789ABCDEF0", id="upper-case"),
        pytest.param(f"{ONE}\n", id="newline-after-it"),
        pytest.param(f" {ONE}", id="space-before-it"),
        pytest.param(f"{ONE},{OTHER}", id="two-of-them"),
        pytest.param(f"../{ONE}", id="a-path"),
        pytest.param(f"{ONE}?MaxItems=1", id="a-query"),
        pytest.param("vol-0123456789abcdef0", id="another-kind"),
        pytest.param("fs-" + "0" * 41, id="too-long"),
        pytest.param("<error expanding template: no such key>", id="a-failed-template"),
        pytest.param(ARN.replace("elasticfilesystem", "s3"), id="arn-of-another-service"),
        pytest.param(ARN.replace(":111122223333", ""), id="arn-without-account"),
        pytest.param(ARN.replace("111122223333", "1111:22223333"), id="arn-with-a-part-too-many"),
        pytest.param(ARN.replace("eu-west-1", "evil-example"), id="arn-without-a-region"),
        pytest.param(ARN.replace("eu-west-1", "-"), id="arn-with-a-dash-for-a-region"),
    ],
)
def test_what_is_neither_is_refused(text):
    with pytest.raises(ValueError, match=r"is neither the id nor the ARN|is not the ARN"):
        parse_name(text)


@given(st.text(max_size=200))
def test_no_text_gets_through_that_could_be_anything_but_a_name(text):
    try:
        name = parse_name(text)
    except ValueError as error:
        assert str(error).isascii()
        assert "\n" not in str(error)
    else:
        assert name.id.startswith("fs-")
        assert name.region is None or is_region(name.region)


@pytest.mark.parametrize("region", ["us-east-1", "us-gov-west-1", "us-isob-east-1", "ap-east-10"])
def test_regions_have_the_form_of_regions(region):
    assert is_region(region)


@pytest.mark.parametrize(
    "text", ["", "us", "US-EAST-1", "us-east-1.evil.example", "us-east-1/", "emea", "us-east-1\n"]
)
def test_other_text_has_not(text):
    assert not is_region(text)


def test_the_label_of_the_alert_names_the_file_system():
    target = find_target({"fs": ONE, "other": OTHER}, options())
    assert (target.name.id, target.named_by) == (ONE, "the label fs")


@pytest.mark.parametrize(
    ("labels", "named_by"),
    [
        pytest.param({"a": ONE, "b": OTHER}, "the label a", id="the-first"),
        pytest.param({"b": ONE}, "the label b", id="the-only-one"),
        pytest.param({"a": "", "b": ONE}, "the label b", id="an-empty-label-is-an-absent-one"),
    ],
)
def test_of_several_labels_the_first_that_the_alert_has_decides(labels, named_by):
    target = find_target(labels, options(EFS_FILE_SYSTEM_PROMETHEUS_LABEL=("a", "b")))
    assert (target.name.id, target.named_by) == (ONE, named_by)


def test_a_label_that_is_wrong_is_never_made_up_for_by_another_or_by_the_static_id():
    settings = {
        "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": ("a", "b"),
        "EFS_FILE_SYSTEM_ID": OTHER,
        "EFS_FALLBACK_TO_STATIC": True,
    }
    with pytest.raises(PermanentError, match="the label a of the alert does not name a file syst"):
        find_target({"a": "fs-?", "b": ONE}, options(**settings))


def test_the_static_id_is_used_when_no_label_is_set():
    target = find_target({}, read_options({"EFS_FILE_SYSTEM_ID": ONE}))
    assert (target.name.id, target.named_by) == (ONE, "EFS_FILE_SYSTEM_ID")


@pytest.mark.parametrize("falls_back", [False, True])
def test_a_missing_label_means_the_static_id_only_when_that_was_asked_for(falls_back):
    chosen = options(EFS_FILE_SYSTEM_ID=ONE, EFS_FALLBACK_TO_STATIC=falls_back)
    if falls_back:
        assert find_target({}, chosen).named_by == "EFS_FILE_SYSTEM_ID"
    else:
        with pytest.raises(PermanentError, match=r"no label fs; .*EFS_FALLBACK_TO_STATIC=true"):
            find_target({}, chosen)


def test_hostile_label_names_are_shown_escaped_and_not_all_of_them():
    labels = {f"label{number}\n\x1b[31m": "x" for number in range(1000)}
    with pytest.raises(PermanentError) as caught:
        find_target(labels, options())
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_only_what_is_allowed_may_be_switched():
    chosen = options(EFS_ALLOWED_FILE_SYSTEM_IDS=(ONE,))
    assert find_target({"fs": ONE}, chosen).name.id == ONE
    assert find_target({"fs": ARN}, chosen).name.id == ONE
    with pytest.raises(PermanentError, match="is not among EFS_ALLOWED_FILE_SYSTEM_IDS"):
        find_target({"fs": OTHER}, chosen)


@pytest.mark.parametrize(
    "arn",
    [
        pytest.param(ARN.replace("eu-west-1", "us-east-1"), id="another-region"),
        pytest.param(ARN.replace("111122223333", "444455556666"), id="another-account"),
    ],
)
def test_an_allowed_arn_allows_that_region_and_account_only(arn):
    with pytest.raises(PermanentError, match="is not among"):
        find_target({"fs": arn}, options(EFS_ALLOWED_FILE_SYSTEM_IDS=(ARN,)))


def test_an_allowed_arn_says_where_a_bare_id_is():
    target = find_target({"fs": ONE}, options(EFS_ALLOWED_FILE_SYSTEM_IDS=(ARN, OTHER)))
    assert target.name == FileSystemName(ONE, "eu-west-1", "111122223333")


@pytest.mark.parametrize(
    ("region", "kept"),
    [("us-east-1", "us-east-1"), ("emea", None), ("", None), ("x.evil.example", None)],
)
def test_a_label_region_counts_when_it_has_the_form_of_one(region, kept):
    assert find_target({"fs": ONE, "region": region}, options()).region_label == kept


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        pytest.param({}, ["EFS_FILE_SYSTEM_ID: is not set; set it, or EFS_"], id="nothing"),
        pytest.param(
            {"EFS_FILE_SYSTEM_ID": "vol-1"},
            ["EFS_FILE_SYSTEM_ID: 'vol-1' is neither the id nor the ARN"],
            id="static-id",
        ),
        pytest.param(
            {"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": (ONE,)},
            [f'PROMETHEUS_LABEL: "{ONE}" is not the name of a label', "into EFS_FILE_SYSTEM_ID"],
            id="an-id-for-a-label",
        ),
        pytest.param(
            {"EFS_FILE_SYSTEM_ID": ONE, "EFS_ALLOWED_FILE_SYSTEM_IDS": (OTHER,)},
            [f"EFS_FILE_SYSTEM_ID: {ONE} is not among EFS_ALLOWED_FILE_SYSTEM_IDS"],
            id="static-id-not-allowed",
        ),
        pytest.param(
            {"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": ("fs",), "EFS_FALLBACK_TO_STATIC": True},
            ["EFS_FALLBACK_TO_STATIC: is true, but EFS_FILE_SYSTEM_ID is not set"],
            id="nothing-to-fall-back-to",
        ),
        pytest.param(
            {
                "EFS_FILE_SYSTEM_ID": "x",
                "EFS_ALLOWED_FILE_SYSTEM_IDS": ("y",),
                "AWS_REGION": "Frankfurt",
                "AWS_DEFAULT_REGION": "frankfurt",
            },
            [
                "EFS_FILE_SYSTEM_ID: 'x'",
                "EFS_ALLOWED_FILE_SYSTEM_IDS: 'y'",
                'AWS_REGION: "Frankfurt" is not a region',
                'AWS_DEFAULT_REGION: "frankfurt" is not a region',
            ],
            id="all-at-once",
        ),
    ],
)
def test_bad_settings_are_reported_together_each_with_its_cure(settings, problems):
    with pytest.raises(ValueError, match="EFS_FILE_SYSTEM") as caught:
        read_options(settings)
    for problem in problems:
        assert problem in str(caught.value)


def test_good_settings_become_options():
    assert read_options(
        {
            "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": ("a", "b"),
            "EFS_FILE_SYSTEM_ID": f" {ARN} ",
            "EFS_FALLBACK_TO_STATIC": True,
            "EFS_ALLOWED_FILE_SYSTEM_IDS": (ONE, OTHER),
            "EFS_LONGEST_WAIT": timedelta(hours=2),
            "AWS_DEFAULT_REGION": "eu-north-1",
        }
    ) == Options(
        labels=("a", "b"),
        file_system=FileSystemName(ONE, "eu-west-1", "111122223333"),
        falls_back=True,
        allowed=(FileSystemName(ONE), FileSystemName(OTHER)),
        longest_wait=timedelta(hours=2),
        region="eu-north-1",
    )
