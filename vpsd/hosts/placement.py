"""Where a new server goes: a pure function of what hosts have and what is wished for.

Of the hosts that have room it takes the one with the fewest of the account's own servers, so that one machine does not
take all of a customer's down; of those the one that is emptiest by its scarcest resource.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from vpsd.catalog.models import Plan
from vpsd.hosts.models import HostHealth, HostState
from vpsd.hypervisor.protocol import storage_reserve_mb
from vpsd.settings import Settings

RESOURCES = ("vcpus", "memory_mb", "storage_gb")


class Room(msgspec.Struct, frozen=True):
    """What placement knows of a host."""

    id: int
    name: str
    location: str | None
    state: str
    health: str
    cpu_ratio: float | None
    memory_ratio: float | None
    storage_ratio: float | None
    cpus: int | None
    memory_mb: int | None
    storage_gb: int | None
    storage_free_mb: int | None
    used_vcpus: int
    used_memory_mb: int
    used_storage_gb: int  # of a shared pool what all its hosts have together
    shared_pool: str | None = None

    def limits(self, settings: Settings) -> dict[str, int | None]:
        """How much of each resource may be handed out; None: not known yet, so anything fits."""
        return {
            "vcpus": _limit(self.cpus, self.cpu_ratio or settings.vcpu_overcommit),
            "memory_mb": _limit(self.memory_mb, self.memory_ratio or settings.memory_overcommit),
            "storage_gb": _limit(self.storage_gb, self.storage_ratio or settings.storage_overcommit),
        }

    def used(self) -> dict[str, int]:
        """How much of each resource is handed out."""
        return {name: getattr(self, f"used_{name}") for name in RESOURCES}

    def is_storage_full(self, settings: Settings) -> bool:
        """Whether what is left of the pool is for the servers that run."""
        if self.storage_free_mb is None:
            return False
        return self.storage_free_mb < storage_reserve_mb(settings.storage_reserve_mb, self.storage_gb)


class Wish(msgspec.Struct, frozen=True):
    """What a server needs of a host."""

    plan: Plan
    location: str | None = None  # None: any
    own: Mapping[int, int] = {}  # by host, how many servers of the account are there
    apart_from: frozenset[int] = frozenset()  # hosts of servers that it must not share one with
    instead_of: Plan | None = None  # what it gives back at the host where it is


class Reason(StrEnum):
    """Why a host does not take a server."""

    ELSEWHERE = "elsewhere"  # it serves another location
    NOT_ENABLED = "not enabled"  # the operator gives it nothing new
    UNREACHABLE = "unreachable"
    APART = "apart"  # a server of the same group is there
    STORAGE_FULL = "storage full"  # what is left of its pool is for the servers that run
    TOO_LITTLE = "too little"  # of `lacking`


class Refusal(msgspec.Struct, frozen=True):
    """Why a host does not take a server: the first of the reasons, in their order."""

    host: str
    reason: Reason
    lacking: tuple[str, ...] = ()


def place(rooms: Sequence[Room], wish: Wish, settings: Settings) -> Room | list[Refusal]:
    """The host that takes a server, or why none does: one refusal for each."""
    refusals = [refusal(room, wish, settings) for room in rooms]
    fitting = [room for room, refused in zip(rooms, refusals, strict=True) if refused is None]
    if not fitting:
        return [refused for refused in refusals if refused is not None]
    return min(fitting, key=lambda room: (wish.own.get(room.id, 0), _fullness(room, wish, settings), room.id))


def refusal(room: Room, wish: Wish, settings: Settings) -> Refusal | None:
    """Why this host does not take a server; None: it does."""
    if wish.location is not None and room.location not in (None, wish.location):
        return Refusal(room.name, Reason.ELSEWHERE)
    if room.state != HostState.ENABLED and wish.instead_of is None:
        return Refusal(room.name, Reason.NOT_ENABLED)
    if room.id in wish.apart_from:
        return Refusal(room.name, Reason.APART)
    lacking = tuple(lacks(room, wish, settings))
    if lacking:
        return Refusal(room.name, Reason.TOO_LITTLE, lacking)
    if room.is_storage_full(settings) and _more(wish)["storage_gb"] > 0:
        return Refusal(room.name, Reason.STORAGE_FULL)
    if room.health == HostHealth.UNREACHABLE:
        return Refusal(room.name, Reason.UNREACHABLE)
    return None


def lacks(room: Room, wish: Wish, settings: Settings) -> list[str]:
    """The resources of which there is too little; smaller than what is given back is always possible."""
    limits, used, more = room.limits(settings), room.used(), _more(wish)
    return [
        name
        for name in RESOURCES
        if (limit := limits[name]) is not None and more[name] > 0 and used[name] + more[name] > limit
    ]


def _more(wish: Wish) -> dict[str, int]:
    back = wish.instead_of
    return {name: getattr(wish.plan, name) - (0 if back is None else getattr(back, name)) for name in RESOURCES}


def _limit(has: int | None, ratio: float) -> int | None:
    return None if has is None else int(has * ratio)


def _fullness(room: Room, wish: Wish, settings: Settings) -> float:
    """How full the host's scarcest resource would be, from 0 to 1."""
    limits, used, more = room.limits(settings), room.used(), _more(wish)
    shares = [
        (used[name] + more[name]) / limit for name in RESOURCES if (limit := limits[name]) is not None and limit > 0
    ]
    return max(shares, default=0.0)
