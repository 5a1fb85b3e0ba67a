"""The table of what may happen to a server."""

import pytest

from vpsd.flows.table import FLOWS
from vpsd.lifecycle import (
    AT_REST,
    FOUND,
    RULES,
    Command,
    Giver,
    Status,
    allowed,
    may_begin,
    may_end,
    supersedes,
)
from vpsd.servers.faults import CommandRefused


def test_every_command_has_a_rule_and_a_flow() -> None:
    assert set(RULES) == set(Command) == set(FLOWS)


def test_every_command_ends_where_another_can_begin() -> None:
    for command, rule in RULES.items():
        if rule.success is None or command in (Command.DELETE, Command.SUSPEND):  # the way out of suspended is credit
            continue
        assert rule.failure is not None
        assert allowed(rule.success)
        assert len(allowed(rule.failure)) > 1, f"{command} fails into a status with no way out but delete"


def test_a_command_that_works_in_a_status_of_its_own_leaves_it_at_its_end() -> None:
    for command, rule in RULES.items():
        assert (rule.working is None) == (rule.success is None) == (rule.failure is None), command
        if rule.working is not None and command is not Command.DELETE:
            assert rule.working not in AT_REST
            assert {rule.success, rule.failure} <= AT_REST, command


def test_everything_but_deleting_and_suspending_is_given_up_some_day() -> None:
    endless = [Command.DELETE, Command.SOFT_DELETE, Command.SUSPEND]
    assert [command for command, rule in RULES.items() if rule.minutes is None] == endless


@pytest.mark.parametrize("status", list(Status))
def test_delete_is_accepted_from_every_status(status: Status) -> None:
    assert may_begin(Command.DELETE, status, Status.DELETING)
    assert Command.DELETE in allowed(status)


def test_customers_may_do_what_the_api_offers_them() -> None:
    customers = {command for command, rule in RULES.items() if rule.given_by is Giver.CUSTOMER}
    assert customers == {
        *(Command.START, Command.STOP, Command.HARD_STOP, Command.REBOOT, Command.RESIZE, Command.REBUILD),
        *(Command.CREATE, Command.BACKUP, Command.RESTORE, Command.DELETE, Command.UNDELETE),
    }
    assert {Command.BACKUP, Command.RESTORE} <= set(allowed(Status.ACTIVE))


def test_a_refusal_names_the_status_and_what_is_allowed_in_it() -> None:
    may = "stop, hard_stop, reboot, resize, rebuild, backup, restore, delete"
    text = str(CommandRefused(Status.ACTIVE, Command.START))
    assert text == f"The server is active; start needs it to be error or stopped. Allowed now: {may}."


def test_delete_pushes_everything_aside_and_everything_pushes_the_seeds_rewriting_aside() -> None:
    assert all(supersedes(Command.DELETE, command) for command in Command)
    pushed_by = {command for command in Command if supersedes(command, Command.CONFIGURE)}
    wait_their_turn = {Command.BACKUP, Command.BACKUP_DAILY, Command.MIGRATE}
    assert pushed_by == set(Command) - wait_their_turn
    assert not supersedes(Command.STOP, Command.REBOOT)
    assert supersedes(Command.HARD_STOP, Command.STOP)


def test_a_delete_that_can_be_undone_pushes_all_but_a_final_one_and_only_an_undelete_pushes_it() -> None:
    assert [command for command in Command if not supersedes(Command.SOFT_DELETE, command)] == [Command.DELETE]
    pushing = {command for command in Command if supersedes(command, Command.SOFT_DELETE)}
    assert pushing == {Command.DELETE, Command.SOFT_DELETE, Command.UNDELETE, Command.STOP, Command.SUSPEND}
    assert [command for command in Command if supersedes(command, Command.DELETE)] == [Command.DELETE]


def test_a_command_leads_only_where_the_table_says() -> None:
    assert may_begin(Command.SUSPEND, Status.ACTIVE, Status.STOPPING)
    assert may_begin(Command.SUSPEND, Status.STOPPED, Status.SUSPENDED)  # nothing has to be done on the host
    assert not may_begin(Command.SUSPEND, Status.ACTIVE, Status.SUSPENDED)
    assert not may_begin(Command.START, Status.ACTIVE, Status.STARTING)
    assert may_end(Command.STOP, Status.STOPPING, Status.STOPPED)
    assert may_end(Command.STOP, Status.STOPPING, Status.ACTIVE)
    assert not may_end(Command.STOP, Status.ACTIVE, Status.STOPPED)
    assert not may_end(Command.STOP, Status.STOPPING, Status.SUSPENDED)


def test_what_is_found_on_a_host_stops_a_server_or_is_an_error_and_deletes_nothing() -> None:
    assert set().union(*FOUND.values()) == {Status.STOPPED, Status.ERROR}
    assert [status for status, leads in FOUND.items() if Status.STOPPED in leads] == [Status.ACTIVE]
