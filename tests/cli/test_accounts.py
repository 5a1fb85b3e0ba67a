"""Accounts and tokens, made and revoked beside a running vpsd."""

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
    assert vpsd.run_json("token", "revoke", str(listed["id"])) == {"id": listed["id"], "revoked": True}
    assert vpsd.ask("GET", "servers/", token=token).status_code == 401


def test_for_people_a_token_is_one_line_to_copy_and_an_account_says_what_comes_next(vpsd: Vpsd) -> None:
    assert "`vpsd token add people` makes a token" in vpsd.run("account", "add", "people").stdout
    said = vpsd.run("token", "add", "people").stdout
    assert vpsd.ask("GET", "servers/", token=said.strip()).status_code == 200
    assert "people" in vpsd.run("account", "list").stdout
    assert said.strip() not in vpsd.run("token", "list").stdout


def test_a_name_that_is_taken_and_an_account_that_there_is_not_are_said_in_a_line(vpsd: Vpsd) -> None:
    for arguments, text in (
        (("account", "add", "default"), "There is an account 'default' already."),
        (("token", "add", "nobody"), "There is no account 'nobody'"),
        (("token", "revoke", "4711"), "There is no valid token 4711"),
    ):
        done = vpsd.run(*arguments)
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
