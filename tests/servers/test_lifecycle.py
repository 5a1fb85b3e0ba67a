"""The table of what may happen to a server."""

import pytest

from vpsd.servers.flows import FLOWS
from vpsd.servers.lifecycle import RULES, Command, Status, allowed, refusal, supersedes


def test_every_command_has_a_rule_and_a_flow() -> None:
    assert set(RULES) == set(Command) == set(FLOWS)


def test_every_command_ends_where_another_can_begin() -> None:
    for command, rule in RULES.items():
        if rule.success is None or command in (Command.DELETE, Command.SUSPEND):  # the way out of suspended is credit
            continue
        assert rule.failure is not None
        assert allowed(rule.success)
        assert len(allowed(rule.failure)) > 1, f"{command} fails into a status with no way out but delete"


def test_everything_but_deleting_and_suspending_is_given_up_some_day() -> None:
    endless = [Command.DELETE, Command.RETIRE, Command.SUSPEND]
    assert [command for command, rule in RULES.items() if rule.minutes is None] == endless


@pytest.mark.parametrize("status", list(Status))
def test_delete_is_accepted_from_every_status(status: Status) -> None:
    assert refusal(status, Command.DELETE) is None
    assert Command.DELETE in allowed(status)


def test_a_refusal_names_the_status_and_what_is_allowed_in_it() -> None:
    text = refusal(Status.ACTIVE, Command.START)
    may = "stop, hard_stop, reboot, resize, rebuild, delete"
    assert text == f"The server is active; start needs it to be error or stopped. Allowed now: {may}."


def test_delete_pushes_everything_aside_and_everything_pushes_the_seeds_rewriting_aside() -> None:
    assert all(supersedes(Command.DELETE, command) for command in Command)
    pushed_by = {command for command in Command if supersedes(command, Command.CONFIGURE)}
    assert pushed_by == set(Command) - {Command.BACKUP, Command.BACKUP_DAILY}  # those wait their turn
    assert not supersedes(Command.STOP, Command.REBOOT)
    assert supersedes(Command.HARD_STOP, Command.STOP)


def test_a_delete_that_can_be_undone_pushes_all_but_a_final_one_and_only_an_undelete_pushes_it() -> None:
    assert [command for command in Command if not supersedes(Command.RETIRE, command)] == [Command.DELETE]
    pushing = {command for command in Command if supersedes(command, Command.RETIRE)}
    assert pushing == {Command.DELETE, Command.RETIRE, Command.UNDELETE, Command.STOP, Command.SUSPEND}
    assert [command for command in Command if supersedes(command, Command.DELETE)] == [Command.DELETE]
