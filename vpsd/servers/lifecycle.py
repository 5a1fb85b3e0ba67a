"""What may happen to a server: one table. API, worker, command line, documents and tests read it."""

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
    DELETED = "deleted"  # shut down, and to be had back until its time is over
    ERROR = "error"


class Command(StrEnum):
    """What a server can be told."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    HARD_STOP = "hard_stop"
    REBOOT = "reboot"
    RESIZE = "resize"
    REBUILD = "rebuild"
    BACKUP = "backup"
    BACKUP_DAILY = "backup_daily"  # vpsd's own: the automatic one, which gives way to everything
    RESTORE = "restore"
    DELETE = "delete"
    UNDELETE = "undelete"
    GROW = "grow"  # vpsd's own: a resize that is only a larger disk, under a guest that runs on
    RETIRE = "retire"  # vpsd's own: what a delete does that may be undone
    RECOVER = "recover"  # vpsd's own: bring a guest back that should run, or take in one that runs
    CONFIGURE = "configure"  # vpsd's own: hand the guest's seed a new hostname
    SUSPEND = "suspend"  # vpsd's own: stop a server for which there is no credit
    RESUME = "resume"  # vpsd's own: bring a suspended server back that ran before


class Rule(msgspec.Struct, frozen=True):
    """What a command needs and where it leads. `working` None: the status does not change."""

    begins_from: frozenset[Status]
    working: Status | None
    success: Status | None
    failure: Status | None
    minutes: int | None  # until it is given up; None: tried until it is done
    public: bool = True


_S = Status
RULES: dict[Command, Rule] = {
    #                    may begin from                             while working     on success   on failure  minutes
    Command.CREATE: Rule(frozenset(), _S.PROVISIONING, _S.ACTIVE, _S.ERROR, 60, False),
    Command.START: Rule(frozenset({_S.STOPPED, _S.ERROR}), _S.STARTING, _S.ACTIVE, _S.ERROR, 60),
    Command.STOP: Rule(frozenset({_S.ACTIVE}), _S.STOPPING, _S.STOPPED, _S.ACTIVE, 15),
    Command.HARD_STOP: Rule(frozenset({_S.ACTIVE, _S.STOPPING}), _S.STOPPING, _S.STOPPED, _S.ACTIVE, 15),
    Command.REBOOT: Rule(frozenset({_S.ACTIVE}), _S.REBOOTING, _S.ACTIVE, _S.ERROR, 30),
    Command.RESIZE: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.ERROR}), _S.RESIZING, _S.ACTIVE, _S.ERROR, 30),
    Command.GROW: Rule(frozenset({_S.ACTIVE}), _S.RESIZING, _S.ACTIVE, _S.ERROR, 30, False),
    Command.REBUILD: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.ERROR}), _S.REBUILDING, _S.ACTIVE, _S.ERROR, 60),
    Command.BACKUP: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.ERROR}), None, None, None, 1440, False),
    Command.BACKUP_DAILY: Rule(frozenset({_S.ACTIVE, _S.STOPPED}), None, None, None, 1440, False),
    Command.RESTORE: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.ERROR}), _S.RESTORING, _S.ACTIVE, _S.ERROR, 1440, False),
    Command.DELETE: Rule(frozenset(_S), _S.DELETING, _S.DELETING, _S.DELETING, None),
    Command.UNDELETE: Rule(frozenset({_S.DELETING, _S.DELETED}), _S.STARTING, _S.ACTIVE, _S.ERROR, 60),
    Command.RETIRE: Rule(frozenset(_S), _S.DELETING, _S.DELETED, _S.DELETED, None, False),
    Command.RECOVER: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.ERROR}), _S.STARTING, _S.ACTIVE, _S.ERROR, 30, False),
    Command.CONFIGURE: Rule(frozenset({_S.ACTIVE}), None, None, None, 15, False),
    Command.SUSPEND: Rule(frozenset({_S.ACTIVE, _S.SUSPENDED}), _S.STOPPING, _S.SUSPENDED, _S.SUSPENDED, None, False),
    Command.RESUME: Rule(frozenset({_S.SUSPENDED}), _S.STARTING, _S.ACTIVE, _S.ERROR, 60, False),
}


def allowed(status: Status) -> list[Command]:
    """What a customer may tell a server in that status."""
    return [command for command, rule in RULES.items() if rule.public and status in rule.begins_from]


def refusal(status: Status, command: Command) -> str | None:
    """Why the command cannot begin in that status, with the way out; None when it can."""
    rule = RULES[command]
    if status in rule.begins_from:
        return None
    may = ", ".join(sorted(rule.begins_from)) or "nothing"
    why = f"{command} needs it to be {may.replace(', ', ' or ')}."
    if status is Status.SUSPENDED:
        why = "add credit, and it goes back to what it was by itself."
    return f"The server is {status}; {why} Allowed now: {', '.join(allowed(status))}."


def supersedes(command: Command, open_command: Command) -> bool:
    """Whether a command may push an open one aside.

    DELETE may push anything, and so may RETIRE, which is a delete as well; what an undelete leads to may push a RETIRE.
    Everything may push the seed's rewriting: the seed is written anew at each boot. An automatic backup, which nobody
    waits for, gives way and is made up for later; one by hand only to what cannot wait. A backup itself pushes nothing.
    Who has asked a guest to stop may lose patience and pull its plug.
    """
    if command in (Command.BACKUP, Command.BACKUP_DAILY):
        return False
    if open_command is Command.DELETE:
        return command is Command.DELETE
    if open_command is Command.RETIRE and command in (Command.UNDELETE, Command.STOP, Command.SUSPEND):
        return True
    if open_command is Command.STOP and command is Command.HARD_STOP:
        return True
    if open_command is Command.BACKUP_DAILY:
        return command is not Command.CONFIGURE
    if open_command is Command.BACKUP and command in (Command.RECOVER, Command.SUSPEND):
        return True
    return command in (Command.DELETE, Command.RETIRE) or open_command is Command.CONFIGURE
