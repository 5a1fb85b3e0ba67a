"""Who is connected: how many in all and from each address, and whose turn it is to send something, until when."""

import logging
import resource
import time
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from vpsd.api.http.addresses import UNKNOWN, network_of, read_address
from vpsd.settings import Settings

log = logging.getLogger(__name__)

_OTHER_DESCRIPTORS = 256  # for databases, hosts, files, and connections that are being ended
_FOR_THIS_MACHINE = 16  # one of so many connections is kept for 127.0.0.1, so that an operator always gets in
_LOG_EVERY_SECONDS = 10
_MOST_TOLD = 64  # of those that there is no room for; the others are cut off without a word


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client may take for what is its turn; an answer that vpsd works on has no limit here."""

    first_byte_seconds: float = 10
    head_seconds: float = 20
    body_seconds: float = 60  # 256 KiB at 35 kbit/s
    idle_seconds: float = 75  # longer than nginx keeps its connections, 60: it is to end them first
    write_seconds: float = 30  # without progress
    linger_seconds: float = 2  # for the client to end it, too
    last_call_seconds: float = 0.5  # for a request that crosses our end, when vpsd stops
    end_seconds: float = 5  # until what is still under way is cut off then


class Member(Protocol):
    """A connection, as far as counting goes."""

    def give_up(self) -> None:
        """End it: the client took too long."""

    def make_room(self) -> None:
        """End it, for a newcomer."""

    def look_at_writing(self, now: float) -> None:
        """End it where the client does not read."""


class _Turn(msgspec.Struct):
    """Since when a client has something to do, and until when."""

    since: float
    until: float


class Connections:
    """Counts them, and ends those whose client keeps vpsd waiting: after a while, or at once when room is needed."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits | None = None,
        *,
        most: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.now = now
        self.stopping = False
        self.stalled: set[Member] = set()  # their clients do not read
        self._most = raise_descriptor_limit(settings.connections) if most is None else most
        self._most_per_address = settings.connections_per_address
        self._trusted = settings.proxy_networks
        self._turns: dict[Member, _Turn] = {}  # those that wait for their client; the first has done so for longest
        self._told: set[Member] = set()  # those that there is no room for
        self._networks: dict[Member, str] = {}
        self._of_network: dict[str, dict[Member, None]] = {}
        self._without_room = 0
        self._log_again = -1.0

    def __len__(self) -> int:
        return len(self._networks)

    def admit(self, member: Member, peer: str) -> bool:
        """Take a connection in, if need be in the place of one that only waits for its client."""
        address = read_address(peer)
        network = UNKNOWN if address is None else network_of(address)
        from_proxy = address is not None and any(address in trusted for trusted in self._trusted)
        local = address is not None and address.is_loopback and not from_proxy
        most = self._most if local else self._most - self._most // _FOR_THIS_MACHINE
        beside = self._of_network.get(network, {})
        crowd: Collection[Member] | None = None
        if len(beside) >= self._most_per_address and not from_proxy:  # all that come through a proxy come from it
            waiting = [other for other in beside if other in self._turns]
            crowd = sorted(waiting, key=lambda other: self._turns[other].since)
        elif len(self) >= most:
            crowd = self._turns
        if crowd is not None:
            self._say_full(peer)
            idle = next((other for other in crowd if other in self._turns and other in self._networks), None)
            if idle is None:
                self._told.add(member)
                return False
            self.leave(idle)
            idle.make_room()
        self._networks[member] = network
        self._of_network.setdefault(network, {})[member] = None
        return True

    @property
    def may_tell(self) -> bool:
        """Whether there is time to tell one that there is no room."""
        return len(self._told) <= _MOST_TOLD

    def leave(self, member: Member) -> None:
        """Count one no more."""
        self.go_on(member)
        self.stalled.discard(member)
        self._told.discard(member)
        network = self._networks.pop(member, None)
        if network is not None:
            beside = self._of_network[network]
            del beside[member]
            if not beside:
                del self._of_network[network]

    def wait(self, member: Member, seconds: float) -> None:
        """From now on a client has so long for what it has to do."""
        self._turns.pop(member, None)
        now = self.now()
        self._turns[member] = _Turn(now, now + seconds)

    def hurry(self, member: Member, seconds: float) -> None:
        """What a client has to do, it has no longer for than that, the time included that has gone by."""
        turn = self._turns.get(member)
        if turn is not None:
            turn.until = min(turn.until, turn.since + seconds)

    def go_on(self, member: Member) -> None:
        """A client has nothing to do: vpsd has."""
        self._turns.pop(member, None)

    def sweep(self) -> None:
        """End those whose clients took too long."""
        now = self.now()
        for member in [member for member, turn in self._turns.items() if turn.until <= now]:
            self.go_on(member)
            member.give_up()
        for member in list(self.stalled):
            member.look_at_writing(now)

    def _say_full(self, peer: str) -> None:
        self._without_room += 1
        if self.now() >= self._log_again:
            log.warning(
                "no room for %d connections, the last one from %s: %d are open; see VPSD_CONNECTIONS and "
                "VPSD_CONNECTIONS_PER_ADDRESS",
                *(self._without_room, peer, len(self)),
            )
            self._without_room, self._log_again = 0, self.now() + _LOG_EVERY_SECONDS


def raise_descriptor_limit(connections: int) -> int:
    """Allow this process as many descriptors as so many connections need; how many it may have then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_DESCRIPTORS
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        soft = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = connections if soft == unlimited else min(connections, max(16, soft - _OTHER_DESCRIPTORS))
    if most < connections:
        log.warning("VPSD_CONNECTIONS=%d: %d descriptors suffice for %d (ulimit -Hn)", connections, soft, most)
    return most
