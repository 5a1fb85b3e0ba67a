"""What can be wrong with what is asked of a server: kinds with parameters, and plain words for each."""

from collections.abc import Sequence

from vpsd.core.clock import iso_utc
from vpsd.errors import Busy, Fault, Protected, TooMany, Unavailable, WrongStatus
from vpsd.hosts.placement import Refusal
from vpsd.lifecycle import RULES, Command, Status, allowed


class UnknownPlan(Fault, frozen=True):
    """There is no such plan on offer; `offered` are ids and names."""

    plan: int | str
    offered: list[tuple[int, str]]
    for_disk: bool = False  # only those with a disk that is large enough are named

    def __str__(self) -> str:
        which = " with a disk that is large enough" if self.for_disk else ""
        return f"There is no plan {self.plan}. The plans{which} are {_named(self.offered)}."


class UnknownSystem(Fault, frozen=True):
    """There is no such operating system on offer; `offered` are ids and names."""

    os_id: int
    offered: list[tuple[int, str]]

    def __str__(self) -> str:
        return f"There is no operating system {self.os_id}. The operating systems are {_named(self.offered)}."


class UnknownLocation(Fault, frozen=True):
    """There is no such location on offer; `offered` are codes."""

    code: str
    offered: list[str]

    def __str__(self) -> str:
        return f"There is no location {self.code!r}. The locations are {', '.join(self.offered)}."


class UnknownSshKey(Fault, frozen=True):
    """The account has no such key."""

    key_id: int

    def __str__(self) -> str:
        return f"There is no SSH key {self.key_id}."


class UnknownPlacementGroup(Fault, frozen=True):
    """The account has no such group."""

    group_id: int

    def __str__(self) -> str:
        return f"There is no placement group {self.group_id}."


class RepeatedTag(Fault, frozen=True):
    """A tag is given twice; `entry` counts from 1."""

    entry: int
    tag: str

    def __str__(self) -> str:
        return f"Entry {self.entry}: {self.tag} is there already. Give each tag once."


class NoPlanNamed(Fault, frozen=True):
    """A resize names no plan, or names it twice."""

    def __str__(self) -> str:
        return "Give the new plan: its id as plan_id, or its uuid as plan."


class SamePlan(Fault, frozen=True):
    """The server has that plan already."""

    plan_name: str

    def __str__(self) -> str:
        return f"The server has the plan {self.plan_name} already."


class DiskCannotShrink(Fault, frozen=True):
    """The plan's disk is smaller than the server's, in GB."""

    wanted_gb: int
    present_gb: int

    def __str__(self) -> str:
        sizes = f"{self.wanted_gb} GB instead of {self.present_gb}"
        return f"A disk cannot shrink ({sizes}). Choose a plan with at least {self.present_gb} GB."


class NobodyRunsUserData(Fault, frozen=True):
    """A server is to be made from a copy whose cloud-init does not run."""

    copy: str
    cloud_init: str

    def __str__(self) -> str:
        return (
            f"cloud-init is {self.cloud_init} in this {self.copy}, so nothing would apply user data. Leave it out, and "
            "set the server up when it is active."
        )


class DiskTooSmall(Fault, frozen=True):
    """The plan's disk is smaller than that of what the server begins with."""

    source: str  # the name of an operating system; a backup or snapshot
    needed_gb: int
    plan_name: str
    plan_gb: int
    smallest: tuple[int, str, int] | None  # of the plans on offer that fit: id, name and GB

    def __str__(self) -> str:
        lacks = f"{self.source} needs a disk of {self.needed_gb} GB, and the plan {self.plan_name} has {self.plan_gb}."
        if self.smallest is None:
            return f"{lacks} No plan on offer has as much."
        plan_id, name, gb = self.smallest
        return f"{lacks} The smallest plan that fits is {name} ({plan_id}), with {gb} GB."


def _named(offered: list[tuple[int, str]]) -> str:
    return ", ".join(f"{entry_id} ({name})" for entry_id, name in offered)


class CommandRefused(WrongStatus):
    """The server's status does not allow the command."""

    def __init__(self, status: Status, command: Command) -> None:
        needed = " or ".join(sorted(RULES[command].begins_from)) or "nothing"
        why = f"{command} needs it to be {needed}."
        if status is Status.SUSPENDED:
            why = "add credit, and it goes back to what it was by itself."
        super().__init__(f"The server is {status}; {why} Allowed now: {', '.join(allowed(status))}.")
        self.status = status
        self.command = command


class IsDeleted(WrongStatus):
    """The server is deleted, and can still be brought back."""

    def __init__(self, server_id: int, status: Status, purge_due_at_ms: int) -> None:
        super().__init__(f"The server is {status}, and gone for ever at {iso_utc(purge_due_at_ms)}. Undelete it.")
        self.server_id = server_id
        self.status = status
        self.purge_due_at_ms = purge_due_at_ms


class IsProtected(Protected):
    """The server's owner has protected what is on its disk: from a delete, a rebuild and a restore."""

    def __init__(self, server_id: int) -> None:
        super().__init__(
            "The server is protected: it cannot be deleted, rebuilt or restored. Lift the protection first."
        )
        self.server_id = server_id


class PlanChanged(Busy):
    """Somebody else has given the server another plan at the same moment."""

    def __init__(self) -> None:
        super().__init__("The server was given another plan at the same moment. Look at it, and ask again.")


class TooManyOperations(TooMany):
    """The account has as many operations open as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} operations of the account are open, and no more may be. Wait for some to end.", 5)
        self.limit = limit


class NoCapacity(Unavailable):
    """No host has room for the plan."""

    code = "out_of_capacity"

    def __init__(self, plan_name: str, lacking: list[str]) -> None:
        missing = ", ".join(lacking)
        text = (
            f"No host has room for a {plan_name} now: too little {missing}. Choose a smaller plan, or another location."
        )
        super().__init__(text, text)
        self.plan_name = plan_name
        self.lacking = lacking


class NoHostThere(Unavailable):
    """No host takes a server at that location, or none that is not taken by another server of its group."""

    code = "out_of_capacity"

    def __init__(self, location: str, *, is_apart: bool = False) -> None:
        text = f"There is no host for new servers at {location} now. Choose another location."
        if is_apart:
            text = (
                "Every host that has room has a server of that placement group already, and they stay apart. Choose "
                "another location, or create it without the group."
            )
        super().__init__(text, text)


class NoOtherHost(Unavailable):
    """No other host takes a server that is to be moved. For the operator: it names hosts and reasons."""

    code = "out_of_capacity"

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        said = "; ".join(f"{one.host}: {' '.join((one.reason, *one.lacking))}" for one in refusals)
        text = f"No other host takes the server now ({said or 'there is none'})."
        super().__init__(text, text)


class HostNotKnown(Unavailable):
    """A server has no host yet, or none that is known."""

    retry_seconds = 5

    def __init__(self) -> None:
        text = "The server has no host yet. Try again in a moment."
        super().__init__(text, text)


class UnknownHost(Fault, frozen=True):
    """There is no such host. For the operator."""

    name: str
    known: list[str]

    def __str__(self) -> str:
        return f"There is no host {self.name!r}. The hosts are {', '.join(self.known)}."


class SameHost(Fault, frozen=True):
    """The server is on that host already. For the operator."""

    name: str

    def __str__(self) -> str:
        return f"The server is on {self.name} already. Leave host out, and one is chosen."


class HostsUnreachable(Unavailable):
    """The hosts that have room do not answer now."""

    retry_seconds = 60

    def __init__(self) -> None:
        text = "The hosts that have room for it do not answer now. Try again in a minute."
        super().__init__(text, text)


class RoomTaken(Unavailable):
    """Others took the room at every host that was tried, at the same moment."""

    retry_seconds = 1

    def __init__(self) -> None:
        text = "Others took the room for it at the same moment. Try again."
        super().__init__(text, text)


class StorageFull(Unavailable):
    """What is left of the host's storage is for the servers that run."""

    retry_seconds = 300

    def __init__(self) -> None:
        text = "The host's storage is almost full: what is left is for the servers that run. Try again later."
        super().__init__(text, text)
