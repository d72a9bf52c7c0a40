"""The README: every example in it is run, parsed by what will read it, or checked by a model."""

import json
import re
import shlex

import botocore.session
import pytest
import yaml
from botocore import xform_name

from action_plugins.efs_emergency.failures import PERMANENT, TEMPORARY
from action_plugins.efs_emergency.options import SETTINGS, read_options
from action_plugins.efs_emergency.targets import find_target
from receiver import settings as receiver_settings
from receiver.plugins import load_actions
from tests.support.efs_readme import FILE_SYSTEM, LABELS, RULES, TEXT, blocks


@pytest.fixture(params=sorted(LABELS))
def exporter(request):
    return request.param


def test_there_is_a_rule_for_each_exporter():
    assert set(RULES) == set(LABELS)


def test_the_label_named_above_a_rule_finds_the_file_system(exporter):
    text, rule = RULES[exporter]
    (label,) = re.findall(r"# EFS_FILE_SYSTEM_PROMETHEUS_LABEL=(\w+)", text)
    expression = rule["spec"]["groups"][0]["rules"][0]["expr"]
    kept = re.search(r"by \(([\w, ]+)\)", expression)[1].split(", ")
    assert kept == list(LABELS[exporter])
    labels = {**LABELS[exporter], label: FILE_SYSTEM}
    target = find_target(labels, read_options({"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": (label,)}))
    assert target.name.id == FILE_SYSTEM
    assert target.region_label == LABELS[exporter].get("region")


def test_the_threshold_of_a_rule_is_the_one_that_it_reports(exporter):
    (rule,) = RULES[exporter][1]["spec"]["groups"][0]["rules"]
    assert rule["expr"].strip().endswith(rule["annotations"]["threshold"])
    assert rule["annotations"]["for"] == rule["for"]
    assert int(rule["annotations"]["threshold"].removeprefix("< ")) == 200 * 2**30


def test_a_rule_is_found_by_kube_prometheus_stack(exporter):
    rule = RULES[exporter][1]
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_policy_allows_exactly_what_the_action_calls(efs, run):
    run()
    (policy,) = [json.loads(text) for text in blocks("json") if "elasticfilesystem:" in text]
    (statement,) = policy["Statement"]
    called = {f"elasticfilesystem:{request.operation}" for request in efs.requests}
    assert (statement["Effect"], set(statement["Action"])) == ("Allow", called)


def test_the_result_in_the_readme_has_the_keys_of_a_real_one(efs, run):
    (shown,) = [json.loads(text) for text in blocks("json") if "request_ids" in text]
    real = run()
    assert list(shown) == list(real)
    assert list(shown["request_ids"]) == list(real["request_ids"])
    assert shown["summary"] == real["summary"]


def test_every_json_and_yaml_block_parses():
    for text in blocks("json"):
        json.loads(text)
    for text in blocks("yaml"):
        yaml.safe_load(text)


@pytest.mark.parametrize(
    "command",
    [line.strip() for text in blocks("sh") for line in text.splitlines()],
    ids=lambda line: " ".join(line.split()[1:3]),
)
def test_a_command_is_one_that_aws_knows(command):
    program, service, operation, *options = shlex.split(command)
    assert program == "aws"
    model = botocore.session.get_session().get_service_model(service)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    shape = model.operation_model(names[operation]).input_shape
    members = {f"--{xform_name(name, '-')}": name for name in shape.members}
    given = dict(zip(options[::2], options[1::2], strict=True))
    given.pop("--region", None)
    assert set(given) <= set(members)
    assert set(shape.required_members) <= {members[option] for option in given}
    for option, value in given.items():
        allowed = shape.members[members[option]].metadata.get("enum")
        assert not allowed or value in allowed


def test_the_way_back_is_accepted_by_efs(efs, run, client_for):
    run()
    commands = [shlex.split(line) for text in blocks("sh") for line in text.splitlines()]
    client = client_for("eu-west-1")
    efs.file_systems[FILE_SYSTEM].region = "eu-west-1"
    for command in commands:
        if command[1:3] == ["efs", "update-file-system"]:
            efs.file_systems[FILE_SYSTEM].mode_changed_at = None
            given = dict(zip(command[3::2], command[4::2], strict=True))
            parameters = {"FileSystemId": given["--file-system-id"]}
            parameters["ThroughputMode"] = given["--throughput-mode"]
            if amount := given.get("--provisioned-throughput-in-mibps"):
                parameters["ProvisionedThroughputInMibps"] = float(amount)
            client.update_file_system(**parameters)
            client.describe_file_systems(FileSystemId=FILE_SYSTEM)
            assert efs.file_systems[FILE_SYSTEM].throughput_mode == given["--throughput-mode"]


def test_the_receiver_accepts_the_example_of_its_settings(tmp_path):
    (text,) = blocks("toml")
    path = tmp_path / "receiver.toml"
    path.write_text(text, encoding="utf-8")
    settings = receiver_settings.load({}, {}, path)
    assert load_actions(settings).plugins["efs_emergency"].state == "loaded"


def test_every_setting_is_described_with_its_default():
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", TEXT, flags=re.MULTILINE))
    assert list(rows) == [setting.name for setting in SETTINGS]
    for setting in SETTINGS:
        if setting.default is not None:
            assert rows[setting.name].strip() == f"`{setting.default}`"


@pytest.mark.parametrize(
    "code",
    sorted(
        code
        for code in (*PERMANENT, *TEMPORARY)
        if code[:8] not in ("AccessDe", "Throttli", "RequestL", "RequestT", "SlowDown", "ServiceU")
        and code not in ("OptInRequired", "IDPCommunicationError")
    ),
)
def test_every_error_of_efs_stands_under_troubleshooting(code):
    assert f"`{code}`" in TEXT.partition("## Troubleshooting")[2]


def test_every_link_inside_leads_somewhere():
    headings = re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_the_dry_run_says_what_the_readme_quotes(efs, run):
    (quoted,) = re.findall(r"^> (would switch .*): …$", TEXT, flags=re.MULTILINE)
    efs.file_systems[FILE_SYSTEM].region = "eu-west-1"
    said = run(environment={"AWS_REGION": "eu-west-1"}, hook="describe")
    assert said.startswith(quoted)
