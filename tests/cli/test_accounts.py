"""Accounts and tokens, made and revoked beside a running vpsd."""

import sqlite3
from pathlib import Path

from tests.cli.conftest import Command
from tests.running import Vpsd


def test_a_new_token_speaks_for_its_account_until_it_is_revoked(vpsd: Vpsd) -> None:
    account = vpsd.run_json("account", "add", "acme")
    assert account["name"] == "acme"
    token = vpsd.run_json("token", "add", "acme", "--name", "laptop")["token"]
    vpsd.create("seen-by-its-owner-alone")
    assert vpsd.ask("GET", "servers/", token=token).json()["count"] == 0
    (listed,) = [found for found in vpsd.run_json("token", "list") if found["account"] == "acme"]
    assert (listed["name"], listed["revoked_at_ms"]) == ("laptop", None)
    assert token not in str(listed)
    assert vpsd.run_json("token", "revoke", str(listed["id"])) == {
        "id": listed["id"],
        "revoked": True,
        "ids": [listed["id"]],
    }
    assert vpsd.ask("GET", "servers/", token=token).status_code == 401


def test_a_token_is_revoked_together_with_those_that_it_made(vpsd: Vpsd, command: Command) -> None:
    command("account", "add", "tree")
    root = command.json("token", "add", "tree")
    child = {"name": "child", "permissions": ["*:*"]}
    made = vpsd.ask("POST", "account/tokens/", token=root["token"], body=child).json()
    made = vpsd.ask("POST", "account/tokens/", token=made["token"], body=child).json()
    ids = [root["id"], made["id"] - 1, made["id"]]
    listed = {token["id"]: token for token in command.json("token", "list")}
    assert [(listed[one]["created_by"], listed[one]["parent_id"]) for one in ids] == [
        ("operator", None),
        ("token", ids[0]),
        ("token", ids[1]),
    ]
    assert f"token {ids[0]}" in command("token", "list").stdout
    said = command("token", "revoke", str(ids[0]), "--children").stdout
    assert said == f"Token {ids[0]} is revoked. So are {ids[1]}, {ids[2]}.\n"


def test_events_that_are_old_are_deleted_by_a_command(command: Command) -> None:
    assert command.json("event", "prune", "30") == {"deleted": 0}
    assert command("event", "prune", "30").stdout == "Deleted 0 events that were older than 30 days.\n"
    assert command("event", "prune", "0").returncode == 2


def test_for_people_a_token_is_one_line_to_copy_and_an_account_says_what_comes_next(vpsd: Vpsd) -> None:
    assert "`vpsd token add people` creates a token" in vpsd.run("account", "add", "people").stdout
    said = vpsd.run("token", "add", "people").stdout
    assert vpsd.ask("GET", "servers/", token=said.strip()).status_code == 200
    assert "people" in vpsd.run("account", "list").stdout
    assert said.strip() not in vpsd.run("token", "list").stdout


def test_a_name_that_is_taken_and_an_account_that_there_is_not_are_said_in_a_line(vpsd: Vpsd) -> None:
    for arguments, text in (
        (("account", "add", "default"), "There is already an account 'default'."),
        (("token", "add", "nobody"), "There is no account 'nobody'"),
        (("token", "revoke", "4711"), "There is no valid token 4711"),
    ):
        done = vpsd.run(*arguments)
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


def test_people_come_and_go_and_their_tokens_with_them(vpsd: Vpsd, command: Command) -> None:
    opened = command.json("account", "add", "family", "--email", "Ann@Family.example", "--first-name", "Ann")
    assert (opened["name"], opened["balance"], opened["credit_limit"]) == ("family", "0.00", "0.00")
    invited = command.json("account", "invite", "family", "bob@family.example", "--role", "read-only")
    assert (invited["email"], invited["role"], invited["account"]) == ("bob@family.example", "read-only", "family")
    assert (
        "carl@family.example now has the role member in family."
        in command(
            *("account", "invite", "family", "carl@family.example", "--first-name", "Carl", "--last-name", "C")
        ).stdout
    )
    shown = command.json("account", "show", "family")
    assert [(person["email"], person["first_name"], person["role"]) for person in shown["people"]] == [
        ("ann@family.example", "Ann", "owner"),
        ("bob@family.example", "", "read-only"),
        ("carl@family.example", "Carl", "member"),
    ]
    said = command("account", "show", "family").stdout
    for word in ("family", "0.00", "ann@family.example", "owner", "read-only", "none"):
        assert word in said
    tokens = [
        command.json("token", "add", "family", "--person", "BOB@family.example", "--name", name) for name in ("a", "b")
    ]
    token = tokens[0]["token"]
    assert vpsd.ask("GET", "servers/", token=token).status_code == 200
    refused = vpsd.ask("POST", "servers/", {}, token=token)
    assert refused.json()["detail"] == "This token lacks the permission servers:*."
    assert command.json("account", "role", "family", "BOB@family.example", "member")["role"] == "member"
    assert vpsd.ask("POST", "servers/", {}, token=token).status_code == 400
    assert command("account", "role", "family", "bob@family.example", "read-only").stdout == (
        "bob@family.example now has the role read-only in family.\n"
    )
    assert vpsd.ask("POST", "servers/", {}, token=token).status_code == 403
    assert vpsd.ask("GET", "account/me/", token=token).json()["token"]["person"] == "bob@family.example"
    gone = command.json("account", "dismiss", "family", "Bob@family.example")
    assert gone == {"account": "family", "email": "Bob@family.example", "tokens_revoked": 2}
    assert {vpsd.ask("GET", "servers/", token=made["token"]).status_code for made in tokens} == {401}
    assert "tokens revoked: 0" in command("account", "dismiss", "family", "carl@family.example").stdout
    assert [person["email"] for person in command.json("account", "show", "family")["people"]] == ["ann@family.example"]


def test_limits_are_set_shown_kept_and_taken_away(vpsd: Vpsd, command: Command) -> None:
    command.json("account", "add", "bounded")
    token = command.json("token", "add", "bounded")["token"]
    limits = ("--credit", "25.50", "--servers", "0", "--vcpus", "2", "--memory-mb", "4096", "--storage-gb", "80")
    limited = command.json("account", "limit", "bounded", *limits)
    names = ("credit_limit", "max_servers", "max_vcpus", "max_memory_mb", "max_storage_gb")
    assert [limited[name] for name in names] == ["25.50", 0, 2, 4096, 80]
    order = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"}
    refused = vpsd.ask("POST", "servers/?dry_run=1", order, token=token)
    assert (refused.status_code, refused.json()["code"]) == (403, "over_quota")
    said = command("account", "limit", "bounded", "--servers", "none", "--credit", "none").stdout
    assert said == (
        "Limits of bounded: credit_limit none, max_servers none, max_vcpus 2, max_memory_mb 4096, max_storage_gb 80.\n"
    )
    assert vpsd.ask("POST", "servers/?dry_run=1", order, token=token).status_code == 200
    (listed,) = [account for account in command.json("account", "list") if account["name"] == "bounded"]
    assert listed == {**limited, "credit_limit": None, "max_servers": None}


def test_a_token_has_the_permissions_and_the_end_that_were_said(vpsd: Vpsd, command: Command) -> None:
    command.json("account", "add", "careful")
    options = ("--permission", "servers:read", "--permission", "billing:read", "--expires-in-days", "90")
    made = command.json("token", "add", "careful", "--name", "monitoring", *options)
    assert set(made) == {"id", "account", "name", "permissions", "token"}
    assert made["permissions"] == ["servers:read", "billing:read"]
    assert vpsd.ask("GET", "account/balance/", token=made["token"]).status_code == 200
    assert vpsd.ask("GET", "ssh-keys/", token=made["token"]).status_code == 403
    (listed,) = [token for token in command.json("token", "list") if token["id"] == made["id"]]
    assert listed["permissions"] == ["servers:read", "billing:read"]
    assert listed["expires_at_ms"] - listed["created_at_ms"] == 90 * 86_400_000
    assert listed["last_used_at_ms"] is not None
    said = command("token", "list").stdout
    assert "servers:read billing:read" in said
    assert made["token"] not in said
    assert f"Token {made['id']} is revoked." in command("token", "revoke", str(made["id"])).stdout
    assert vpsd.ask("GET", "account/balance/", token=made["token"]).status_code == 401
    assert f"There is no valid token {made['id']}" in command.refused("token", "revoke", str(made["id"]))


def test_what_the_operator_does_is_in_the_accounts_events(vpsd: Vpsd, command: Command) -> None:
    command.json("account", "add", "watched", "--email", "eve@watched.example")
    token = command.json("token", "add", "watched")["token"]
    made = command.json("token", "add", "watched", "--name", "brief", "--permission", "*:read")
    command.json("account", "limit", "watched", "--servers", "3", "--credit", "1")
    command.json("account", "invite", "watched", "adam@watched.example")
    command.json("account", "role", "watched", "adam@watched.example", "owner")
    command.json("account", "dismiss", "watched", "adam@watched.example")
    command.json("credit", "add", "watched", "12.5", "--note", "welcome")
    command.json("token", "revoke", str(made["id"]))
    command.refused("token", "add", "watched", "--permission", "servers:fly")  # has none
    events = vpsd.ask("GET", "account/events/", token=token).json()["results"]
    assert [(event["action"], event["detail"]) for event in reversed(events)] == [
        ("account.open", None),
        ("person.add", "eve@watched.example as owner"),
        ("token.create", "token: *:*"),
        ("token.create", "brief: *:read"),
        ("account.limit", "max_servers 3, credit_limit_micros 1000000"),
        ("person.add", "adam@watched.example as member"),
        ("person.role", "adam@watched.example as owner"),
        ("person.remove", "adam@watched.example"),
        ("credit.add", "12.50: welcome"),
        ("token.revoke", None),
    ]
    assert {event["actor"] for event in events} == {"operator"}
    assert {(event["token"], event["address"], event["request_id"]) for event in events} == {(None, None, None)}
    assert events[0]["target"] == {"type": "token", "id": made["id"]}


def test_what_is_wrong_is_said_in_a_line_that_names_it(command: Command) -> None:
    command.json("account", "add", "picky", "--email", "ann@picky.example")
    before = command.json("account", "show", "picky")
    for arguments, text in (
        (("account", "add", ""), "name: Give 1 to 255 printable characters."),
        (("account", "add", "n" * 256), "name: Give 1 to 255"),
        (("account", "add", "two\nlines"), "name: Give 1 to 255"),
        (
            ("account", "role", "picky", "bob@picky.example", "owner"),
            "There is no person 'bob@picky.example'; `vpsd account show ACCOUNT` lists",
        ),
        (("account", "role", "nobody", "ann@picky.example", "owner"), "There is no account 'nobody'"),
        (("account", "add", "picky"), "name: There is already an account 'picky'."),
        (("account", "add", "picky-2", "--email", "nonsense"), "email: 'nonsense' is not an e-mail address."),
        (("account", "show", "nobody"), "There is no account 'nobody'; `vpsd account list` shows them."),
        (("account", "limit", "nobody", "--servers", "1"), "There is no account 'nobody'"),
        (("account", "limit", "picky", "--servers", "-1"), "max_servers: Give a whole number"),
        (("account", "limit", "picky", "--servers", "1.5"), "max_servers: Give a whole number"),
        (("account", "limit", "picky", "--memory-mb", "4 GB"), "max_memory_mb: Give a whole number"),
        (("account", "limit", "picky", "--vcpus", str(2**31)), "max_vcpus: Give a number"),
        (("account", "limit", "picky", "--storage-gb", ""), "max_storage_gb: Give a whole number"),
        (("account", "limit", "picky", "--credit", "-1"), "credit_limit_micros: Give a number from 0"),
        (("account", "limit", "picky", "--credit", "much"), "credit: much is not an amount"),
        (("account", "invite", "nobody", "bob@picky.example"), "There is no account 'nobody'"),
        (("account", "invite", "picky", "bob"), "email: 'bob' is not an e-mail address."),
        (("account", "invite", "picky", "b b@picky.example"), "is not an e-mail address."),
        (("account", "invite", "picky", "a" * 250 + "@x.example"), "is not an e-mail address."),
        (
            ("account", "invite", "picky", "ANN@picky.example"),
            "email: ann@picky.example already belongs to the account.",
        ),
        (("account", "invite", "picky", "b@picky.example", "--last-name", "n" * 256), "first_name: Give at most 255"),
        (
            ("account", "dismiss", "picky", "bob@picky.example"),
            "There is no person 'bob@picky.example'; `vpsd account show ACCOUNT` lists",
        ),
        (("token", "add", "nobody"), "There is no account 'nobody'"),
        (("token", "add", "picky", "--permission", "servers:fly"), "permissions: There is no servers:fly."),
        (
            ("token", "add", "picky", "--person", "bob@picky.example"),
            "There is no person 'bob@picky.example'; `vpsd account show ACCOUNT` lists",
        ),
        (("token", "add", "picky", "--name", ""), "name: Give 1 to 255 printable characters."),
        (("token", "add", "picky", "--expires-in-days", "0"), "expires_in_days: Give whole days, 1 to 3660."),
        (("token", "add", "picky", "--expires-in-days", "3661"), "expires_in_days: Give whole days"),
    ):
        assert text in command.refused(*arguments)
    assert command.json("account", "show", "picky") == before
    assert "picky-2" not in str(command.json("account", "list"))  # what failed halfway is undone
    assert not [token for token in command.json("token", "list") if token["account"] == "picky"]


def test_what_people_call_things_is_shown_as_they_wrote_it(command: Command, tmp_path: Path) -> None:
    loud, names = "[bold]loud[/]", ["[/red]", "[link=http://example.com]here"]  # the tables' library knows such markup
    command.json("account", "add", loud, "--email", "[a@b].example", data_dir=tmp_path)
    for name in names:  # as a customer may call a token of theirs, over the API
        command.json("token", "add", loud, "--name", name, data_dir=tmp_path)
    done = command("token", "list", data_dir=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in (loud, *names):
        assert name in done.stdout
    assert loud in command("account", "list", data_dir=tmp_path).stdout
    assert "[a@b].example" in command("account", "show", loud, data_dir=tmp_path).stdout
    command.json("credit", "add", loud, "1", "--note", "[/] thanks", data_dir=tmp_path)
    assert "[/] thanks" in command("credit", "list", loud, data_dir=tmp_path).stdout


def test_a_name_does_not_write_on_the_operators_terminal(vpsd: Vpsd, command: Command, tmp_path: Path) -> None:
    name = "clear\x1b[2Jscreen"
    command.json("account", "add", "sly")
    token = command.json("token", "add", "sly")["token"]
    body = {"name": name, "permissions": ["*:read"]}
    assert vpsd.ask("POST", "account/tokens/", body, token=token).status_code == 400
    assert "name: " in command.refused("token", "add", "sly", "--name", name)
    assert "note: " in command.refused("credit", "add", "sly", "1", "--note", name)
    command.json("account", "add", "old", data_dir=tmp_path)
    command.json("token", "add", "old", data_dir=tmp_path)
    with sqlite3.connect(tmp_path / "vpsd.sqlite") as database:
        database.execute("UPDATE tokens SET name = ?", (name,))  # as it could be called before
    assert "clear?[2Jscreen" in command("token", "list", data_dir=tmp_path).stdout
