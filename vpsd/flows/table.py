"""By command: its steps, what is cleaned up when it comes to nothing, and what else is written down at its end."""

from collections.abc import Awaitable, Callable, Sequence

from vpsd.backups.commands import record_end
from vpsd.core.context import Ctx
from vpsd.flows.backup_steps import (
    clean_up_backup,
    clean_up_restore,
    copy_disk,
    drop_copy,
    drop_old_disk,
    store_copy,
    take_restored_disk,
    write_restored_disk,
)
from vpsd.flows.first_boot import needs_setting_right, set_right
from vpsd.flows.job import Job
from vpsd.flows.migrate import (
    await_moved,
    clean_up_move,
    clear_source,
    clear_target,
    move_live,
    move_off,
    power_on_moved,
    stop_to_move,
)
from vpsd.flows.steps import (
    await_boot,
    clean_up_rebuild,
    define_guest,
    discard_disk,
    fetch_image,
    fetch_next_image,
    make_disk,
    power_on,
    pull_plug,
    release_address,
    remove_guest,
    reserve_address,
    shut_down,
    write_seed,
)
from vpsd.lifecycle import Command
from vpsd.operations.models import Operation
from vpsd.servers import moving

Step = Callable[[Job], Awaitable[None]]

_MADE: tuple[Step, ...] = (reserve_address, fetch_image, make_disk, write_seed, define_guest)
_BOOT: tuple[Step, ...] = (*_MADE, power_on, set_right, await_boot)
_BACKUP: tuple[Step, ...] = (copy_disk, store_copy, drop_copy)

# The names of the steps are stored in `operations.step`, and customers see them.
FLOWS: dict[Command, tuple[Step, ...]] = {
    Command.CREATE: _BOOT,
    Command.START: _BOOT,
    Command.RECOVER: _BOOT,
    Command.STOP: (shut_down,),
    Command.HARD_STOP: (pull_plug,),
    Command.REBOOT: (shut_down, *_BOOT),
    Command.RESIZE: (shut_down, *_BOOT),
    Command.GROW: (make_disk,),
    Command.REBUILD: (fetch_next_image, discard_disk, *_BOOT),
    Command.BACKUP: _BACKUP,
    Command.BACKUP_DAILY: _BACKUP,
    Command.RESTORE: (write_restored_disk, shut_down, take_restored_disk, *_BOOT, drop_old_disk),
    Command.DELETE: (remove_guest, release_address),
    Command.SOFT_DELETE: (shut_down,),
    Command.UNDELETE: (shut_down, *_BOOT),  # one that is still going down would go down after all
    Command.CONFIGURE: (write_seed,),
    Command.SUSPEND: (shut_down,),
    Command.RESUME: _BOOT,
    Command.MIGRATE: (clear_target, move_live, stop_to_move, move_off, power_on_moved, clear_source, await_moved),
}

_NEEDED: dict[Step, Callable[[Job], bool]] = {set_right: needs_setting_right}


def steps_of(job: Job) -> tuple[Sequence[Step], int]:
    """The steps of the job's flow that its server needs, and how many of them are done."""
    flow = FLOWS[Command(job.operation.command)]
    names = [step.__name__ for step in flow]
    begun = names.index(job.operation.step) if job.operation.step in names else 0
    needed = [step for step in flow if step not in _NEEDED or _NEEDED[step](job)]
    return needed, sum(step in needed for step in flow[:begun])


# Flows that look at hosts, and mark guests, themselves: theirs are two, of which one may not answer.
LOOK_THEMSELVES = frozenset({Command.MIGRATE})

# What is done, while the worker still has the operation, for one that fails or gives way; it may say something of it.
CLEAN_UP: dict[Command, Callable[[Job], Awaitable[str | None]]] = {
    Command.BACKUP: clean_up_backup,
    Command.BACKUP_DAILY: clean_up_backup,
    Command.RESTORE: clean_up_restore,
    Command.REBUILD: clean_up_rebuild,
    Command.MIGRATE: clean_up_move,
}

# The first step of those that have nothing to clean up behind it: what it finds is not their own.
LEAVES_NOTHING: dict[Command, Step] = {Command.MIGRATE: clear_target}

# What may not end before it is cleaned up, however long that takes: it may still come to another end than rows say.
CLEANS_UP_FIRST = frozenset({Command.MIGRATE})

# In the transaction in which the operation ends; the text is why it came to nothing.
RECORD_END: dict[Command, Callable[[Ctx, Operation, str | None], Awaitable[None]]] = {
    Command.BACKUP: record_end,
    Command.BACKUP_DAILY: record_end,
    Command.MIGRATE: moving.record_end,
}
