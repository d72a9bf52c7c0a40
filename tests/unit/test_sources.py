"""`[sources.<name>]` of receiver.toml: what is accepted and what is refused."""

from pathlib import Path

import pytest

from receiver.declarations import declared
from receiver.errors import SettingsError
from receiver.plugins import catalogs_of, load_actions, rules_of
from receiver.settings import Settings, load
from receiver.sources import Source
from receiver.web.binding import check_bind, who_may

SECRET = "s3cret"


def read(directory: Path, toml: str, **environment: str) -> Settings:
    """Return the settings of this file and environment."""
    file = directory / "receiver.toml"
    file.write_text(toml)
    return load(environment, {}, file)


def problems(directory: Path, toml: str, **environment: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        read(directory, toml, **environment)
    assert SECRET not in str(refused.value)
    return refused.value.problems


def test_without_the_section_there_is_no_source(tmp_path: Path) -> None:
    assert read(tmp_path, "").sources == {}


def test_source_has_its_credentials_and_the_actions_that_it_reaches(tmp_path: Path) -> None:
    found = read(tmp_path, """
        [sources.one]
        submit_token = "old new"
        submit_basic_auth = "user:password"
        actions = ["log_action", "file_action"]
        [sources."prod/eu-1:a@b"]
        actions = "log_action"
    """).sources  # fmt: skip

    assert found == {
        "one": Source(("old", "new"), ("user:password",), ("log_action", "file_action")),
        "prod/eu-1:a@b": Source(actions=("log_action",)),
    }
    assert [found[name].has_credentials for name in found] == [True, False]


def test_credentials_are_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")

    (found,) = read(tmp_path, f"[sources.a]\nsubmit_token_file = '{file}'").sources.values()

    assert found.submit_token == ("from-a-file",)
    assert found.secret_files == {"submit_token": file}


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 129, "a?b"])
def test_name_that_no_query_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f'[sources."{name}"]')

    assert problem.startswith(f"receiver.toml: [sources.{name}] is not the name of a source; ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sources = 7", "receiver.toml: sources must be tables, [sources.<name>]"),
        ("[sources]\na = 7", "receiver.toml: sources must be tables, [sources.<name>]"),
        (
            "[sources.a]\nsubmit_tokens = 's3cret'",
            "receiver.toml: [sources.a] submit_tokens is not a key of a source"
            " (did you mean submit_token?)",
        ),
        (
            "[sources.a]\nactions_file = 'x'",
            "receiver.toml: [sources.a] actions_file is not a key of a source"
            " (did you mean actions?)",
        ),
        (
            "[sources.a]\nsubmit_token = 's3cret s3cret2 s3cret3'",
            "[sources.a] submit_token: holds more than two; write the old one and the new one",
        ),
        (
            "[sources.a]\nsubmit_basic_auth = 's3cret'",
            "[sources.a] submit_basic_auth: is not a login; write user:password, without spaces in"
            " either",
        ),
        (
            "[sources.a]\nsubmit_token_file = '/nowhere'",
            "[sources.a] submit_token_file: cannot be read: No such file or directory: /nowhere",
        ),
        (
            "[sources.a]\nsubmit_token = 's3cret'\nsubmit_token_file = '/dev/null'",
            "[sources.a] submit_token: is set together with submit_token_file; keep one of them",
        ),
        (
            "[sources.a]\nsubmit_token_file = '/dev/null'",
            "[sources.a] submit_token: is empty in the file that submit_token_file names",
        ),
    ],
)
def test_wrong_value_is_refused_with_its_place_and_cure(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert problems(tmp_path, text) == (problem,)


@pytest.mark.parametrize("key", ["submit_token", "submit_token_file", "submit_basic_auth"])
@pytest.mark.parametrize("empty", ['""', '" "'])
def test_empty_credential_does_not_open_the_source_to_others(
    tmp_path: Path, key: str, empty: str
) -> None:
    assert f"[sources.a] {key}: is empty; leave it out" in problems(
        tmp_path, f"[sources.a]\n{key} = {empty}"
    )


@pytest.mark.parametrize("empty", ["[]", '""', '[""]', '","'])
def test_empty_list_of_actions_does_not_open_all_of_them(tmp_path: Path, empty: str) -> None:
    assert problems(tmp_path, f"[sources.a]\nactions = {empty}") == (
        "[sources.a] actions: is empty; leave it out",
    )


@pytest.mark.parametrize(
    ("environment", "other", "place"),
    [
        ({}, f"[sources.b]\nsubmit_token = '{SECRET}'", "[sources.b] submit_token"),
        ({"RECEIVER_SUBMIT_TOKEN": f"x {SECRET}"}, "", "[sources.a] submit_token"),
    ],
    ids=["another source", "all senders"],
)
def test_token_that_another_sender_has_too_is_refused(
    tmp_path: Path, environment: dict[str, str], other: str, place: str
) -> None:
    (problem,) = problems(
        tmp_path, f"[sources.a]\nsubmit_token = '{SECRET} y'\n{other}", **environment
    )

    assert problem.startswith(f"{place}: is also in ")
    assert problem.endswith("; give each its own")


def test_login_that_another_sender_has_too_is_refused(tmp_path: Path) -> None:
    login = f"user:{SECRET}"

    assert problems(
        tmp_path,
        f"[sources.a]\nsubmit_basic_auth = '{login}'",
        RECEIVER_SUBMIT_BASIC_AUTH=login,
    ) == (
        "[sources.a] submit_basic_auth: is also in RECEIVER_SUBMIT_BASIC_AUTH; give each its own",
    )


def test_no_secret_is_shown_with_the_settings(tmp_path: Path) -> None:
    found = read(tmp_path, f"""
        [sources.a]
        submit_token = "{SECRET}"
        submit_basic_auth = "user:{SECRET}"
    """)  # fmt: skip

    assert SECRET not in repr(found)


def test_credentials_of_a_source_open_the_webhook_beyond_loopback(tmp_path: Path) -> None:
    found = read(tmp_path, f"[sources.a]\nsubmit_token = '{SECRET}'", RECEIVER_BIND="0.0.0.0:8080")

    check_bind(found)

    assert who_may(found, "submit") == "whoever has [sources.a] submit_token"


def test_list_of_actions_alone_is_no_credential(tmp_path: Path) -> None:
    found = read(tmp_path, "[sources.a]\nactions = 'log_action'", RECEIVER_BIND="0.0.0.0:8080")

    with pytest.raises(SettingsError, match="there are no credentials"):
        check_bind(found)


def test_action_that_nobody_knows_is_refused_with_the_nearest(tmp_path: Path) -> None:
    found = read(tmp_path, "[sources.a]\nactions = ['log_acton', 'http_plugin']")

    with pytest.raises(SettingsError) as refused:
        rules_of(found, load_actions(found))

    assert refused.value.problems == (
        "[sources.a] actions: there is no action log_acton (did you mean log_action?)",
    )


def test_catalog_of_a_source_names_what_is_out_of_reach(tmp_path: Path) -> None:
    found = read(tmp_path, "[sources.a]\nactions = ['log_action', 'efs_emergency']")
    catalogs = catalogs_of(found, load_actions(found))

    whole, limited = catalogs.for_source("b"), catalogs.for_source("a")

    assert limited.loaded == {"log_action"}
    assert limited.not_loaded["exec_plugin"] == whole.not_loaded["exec_plugin"]
    assert all(limited.knows(name) for name in [*whole.loaded, *whole.not_loaded])
    out_of_reach = whole.loaded - limited.loaded
    assert {limited.not_loaded[name] for name in out_of_reach} == {
        f"the source a may reach only efs_emergency, log_action, not {name}"
        for name in out_of_reach
    }


def test_every_key_has_help() -> None:
    assert all(setting.help for setting in declared(Source).values())
