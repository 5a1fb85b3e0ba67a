"""What may happen to a server: one table. API, worker, command line, documents and tests read it."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Status(StrEnum):
    """What a server is doing, as the API says it."""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    REBOOTING = "rebooting"
    RESIZING = "resizing"
    REBUILDING = "rebuilding"
    RESTORING = "restoring"
    SUSPENDED = "suspended"
    DELETING = "deleting"
    DELETED = "deleted"  # shut down, and can be brought back until its time is over
    ERROR = "error"


class Command(StrEnum):
    """What a server can be told to do."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    HARD_STOP = "hard_stop"
    REBOOT = "reboot"
    RESIZE = "resize"
    GROW = "grow"  # a resize that is only a larger disk, under a guest that goes on running
    REBUILD = "rebuild"
    BACKUP = "backup"
    BACKUP_DAILY = "backup_daily"  # the automatic one, which gives way to everything
    RESTORE = "restore"
    DELETE = "delete"
    UNDELETE = "undelete"
    SOFT_DELETE = "retire"  # what a delete does that can be undone
    RECOVER = "recover"  # bring a guest back that should run, or take in one that runs
    CONFIGURE = "configure"  # write a new hostname into the guest's seed
    SUSPEND = "suspend"  # stop a server for which there is no credit
    RESUME = "resume"  # bring a suspended server back that ran before
    MIGRATE = "migrate"  # have it on another host


class Giver(StrEnum):
    """Who may give a command."""

    CUSTOMER = "customer"
    VPSD = "vpsd"  # vpsd itself: by the clock, by the account's credit, or by what it finds on the host
    OPERATOR = "operator"


_S, _C = Status, Command

# The seed is written anew at each boot, so everything but a backup may push its rewriting aside. An automatic backup,
# which nobody waits for, gives way and is made up for later.
_GIVES_WAY = frozenset({_C.CONFIGURE, _C.BACKUP_DAILY})


class Rule(msgspec.Struct, frozen=True):
    """All that is said of a command."""

    begins_from: frozenset[Status]
    working: Status | None  # None: the status does not change
    success: Status | None
    failure: Status | None
    minutes: int | None  # until it is given up; None: tried until it is done
    given_by: Giver = Giver.VPSD
    message: str = ""  # what whoever gives it is told
    supersedes: frozenset[Command] = _GIVES_WAY  # open commands that it pushes aside
    moves_disks: bool = False  # may take hours, and whatever its end, a worker has to clean up behind it
    at_once: Mapping[Status, frozenset[Status]] = {}  # where it leads without any work on the host, and from where
    needs_credit: bool = False  # when a customer gives it: the server runs in the end


def _from(*statuses: Status) -> frozenset[Status]:
    return frozenset(statuses)


_REST = _from(_S.ACTIVE, _S.STOPPED, _S.ERROR)
_OFF = _from(_S.STOPPED, _S.SUSPENDED, _S.ERROR)
_ANY = frozenset(Status)
_BY_CUSTOMER = Giver.CUSTOMER
_BY_VPSD = Giver.VPSD

RULES: dict[Command, Rule] = {
    # may begin from, while working, on success, on failure, minutes; given by, message, pushes aside
    _C.CREATE: Rule(
        *(_from(), _S.PROVISIONING, _S.ACTIVE, _S.ERROR, 60, _BY_CUSTOMER),
        "Server is being provisioned. This may take 2-5 minutes.",
    ),
    _C.START: Rule(
        *(_from(_S.STOPPED, _S.ERROR), _S.STARTING, _S.ACTIVE, _S.ERROR, 60, _BY_CUSTOMER),
        "Server is starting",
        needs_credit=True,
    ),
    _C.STOP: Rule(
        *(_from(_S.ACTIVE), _S.STOPPING, _S.STOPPED, _S.ACTIVE, 15, _BY_CUSTOMER),
        "Server is stopping",
        _GIVES_WAY | {_C.SOFT_DELETE},
    ),
    _C.HARD_STOP: Rule(
        *(_from(_S.ACTIVE, _S.STOPPING), _S.STOPPING, _S.STOPPED, _S.ACTIVE, 15, _BY_CUSTOMER),
        "Server is being powered off",
        _GIVES_WAY | {_C.STOP},  # who asked a guest to stop may lose patience
    ),
    _C.REBOOT: Rule(
        *(_from(_S.ACTIVE), _S.REBOOTING, _S.ACTIVE, _S.ERROR, 30, _BY_CUSTOMER),
        "Server is rebooting",
        needs_credit=True,
    ),
    _C.RESIZE: Rule(
        *(_REST, _S.RESIZING, _S.ACTIVE, _S.ERROR, 30, _BY_CUSTOMER), "Server is being resized. It reboots once."
    ),
    _C.GROW: Rule(
        *(_from(_S.ACTIVE), _S.RESIZING, _S.ACTIVE, _S.ERROR, 30, _BY_VPSD),
        "Server is being resized while it runs. Its file system fills the larger disk when it boots next.",
    ),
    _C.REBUILD: Rule(
        *(_REST, _S.REBUILDING, _S.ACTIVE, _S.ERROR, 60, _BY_CUSTOMER),
        "Server is being rebuilt. This may take 2-5 minutes.",
        needs_credit=True,
    ),
    _C.BACKUP: Rule(
        *(_REST, None, None, None, 1440, _BY_CUSTOMER),
        "{noun} is being created. This may take 3-10 minutes depending on server size.",
        frozenset(),
        moves_disks=True,
    ),
    _C.BACKUP_DAILY: Rule(
        _from(_S.ACTIVE, _S.STOPPED), None, None, None, 1440, supersedes=frozenset(), moves_disks=True
    ),
    _C.RESTORE: Rule(
        *(_REST, _S.RESTORING, _S.ACTIVE, _S.ERROR, 1440, _BY_CUSTOMER),
        "Server is being restored from {noun}. This may take 5-15 minutes.",
        moves_disks=True,
        needs_credit=True,
    ),
    _C.DELETE: Rule(_ANY, _S.DELETING, _S.DELETING, _S.DELETING, None, _BY_CUSTOMER, supersedes=frozenset(Command)),
    _C.UNDELETE: Rule(
        *(_from(_S.DELETING, _S.DELETED), _S.STARTING, _S.ACTIVE, _S.ERROR, 60, _BY_CUSTOMER),
        "Server is being brought back",
        _GIVES_WAY | {_C.SOFT_DELETE},
        # One that did not run before is where it was, or comes to rest there when it has gone down.
        at_once={_S.DELETED: _OFF, _S.DELETING: _OFF | {_S.STOPPING}},
        needs_credit=True,
    ),
    _C.SOFT_DELETE: Rule(
        *(_ANY, _S.DELETING, _S.DELETED, _S.DELETED, None),
        supersedes=frozenset(Command) - {_C.DELETE},
        at_once=dict.fromkeys(_OFF, _from(_S.DELETED)),
    ),
    _C.RECOVER: Rule(_REST, _S.STARTING, _S.ACTIVE, _S.ERROR, 30, supersedes=_GIVES_WAY | {_C.BACKUP}),
    _C.CONFIGURE: Rule(_from(_S.ACTIVE), None, None, None, 15, supersedes=frozenset({_C.CONFIGURE})),
    _C.SUSPEND: Rule(
        *(_from(_S.ACTIVE, _S.STOPPED, _S.SUSPENDED), _S.STOPPING, _S.SUSPENDED, _S.SUSPENDED, None),
        supersedes=_GIVES_WAY | {_C.BACKUP, _C.SOFT_DELETE},
        at_once={_S.STOPPED: _from(_S.SUSPENDED)},
    ),
    _C.RESUME: Rule(
        _from(_S.SUSPENDED), _S.STARTING, _S.ACTIVE, _S.ERROR, 60, at_once={_S.SUSPENDED: _from(_S.STOPPED)}
    ),
    # It waits for nobody: what it has taken of the other host is given back by whoever has it.
    _C.MIGRATE: Rule(
        *(_from(_S.ACTIVE, _S.STOPPED, _S.SUSPENDED, _S.DELETED, _S.ERROR), None, None, None, 1440, Giver.OPERATOR),
        "Server is being moved to another host.",
        frozenset(),
        moves_disks=True,
    ),
}

# What vpsd may conclude from what it finds on the host: a guest that went down by itself, and what cannot be as it is.
FOUND: Mapping[Status, frozenset[Status]] = {
    **{status: frozenset({_S.ERROR}) for status in Status if status not in (_S.DELETED, _S.ERROR)},
    _S.ACTIVE: frozenset({_S.STOPPED, _S.ERROR}),
}

_COMMANDS = frozenset[str](Command)

AT_REST = frozenset(Status) - {rule.working for rule in RULES.values()}
"""Statuses in which nothing is under way."""

ENDS_OFF = frozenset({_C.STOP, _C.HARD_STOP, _C.SUSPEND, _C.SOFT_DELETE, _C.DELETE})
"""Commands that cut the guest's power in the end, whether or not it answers."""

ENDS_GUEST = ENDS_OFF | {_C.REBUILD}
"""Commands that end the guest, whatever follows: they need no answer from it."""


def allowed(status: Status) -> list[Command]:
    """What a customer may tell a server in that status."""
    return [
        command for command, rule in RULES.items() if rule.given_by is Giver.CUSTOMER and status in rule.begins_from
    ]


def supersedes(command: Command, open_command: str) -> bool:
    """Whether a command may push an open one aside; one of a later vpsd is not pushed."""
    return open_command in RULES[command].supersedes


def known(command: str) -> Command | None:
    """The command of a row; None for one of a later vpsd, which may work on the same database."""
    return Command(command) if command in _COMMANDS else None


def may_begin(command: Command, before: Status, to: Status) -> bool:
    """Whether a command that is given may lead from one status to another."""
    rule = RULES[command]
    return before in rule.begins_from and (to is rule.working or to in rule.at_once.get(before, ()))


def may_end(command: Command, before: Status, to: Status) -> bool:
    """Whether the end of a command may lead from one status to another."""
    rule = RULES[command]
    return before is rule.working and to in (rule.success, rule.failure)
