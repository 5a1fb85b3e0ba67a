"""On whose behalf a host is changed, so that nobody changes what is another's, and who comes too late changes nothing.

A worker may be stopped in the middle of a call, lose its lease, and go on when another worker has long done the work.
"""

from collections.abc import Callable

import msgspec

from vpsd.errors import Unusable, VpsdError


class TakenOver(VpsdError):
    """The guest is another operation's by now, or another worker's: whoever meets this drops what it holds."""

    def __init__(self) -> None:
        super().__init__("Another worker has taken this over.")


class NameTaken(Unusable):
    """The host has another guest of that name."""

    def __init__(self) -> None:
        text = "The host already has a guest of that name."
        super().__init__(text, text)


def _always() -> None:
    pass


class Owner(msgspec.Struct, frozen=True):
    """Whom a guest has to belong to. With nothing set, anybody: the operator's commands.

    `check` raises `TakenOver` where time is over. Drivers call it right before each thing that they do to a host, from
    any thread.
    """

    uuid: str | None = None  # of the guest
    term: str | None = None  # what `Hypervisor.take` marks the guest with: the operation's id and fence, `7.2`
    check: Callable[[], None] = _always

    def is_other(self, uuid: str) -> bool:
        """Whether the guest with that uuid is another server's."""
        return self.uuid is not None and uuid != self.uuid

    def check_term(self, present: str | None) -> None:
        """Raise `TakenOver` for a guest that has a later mark: one with an earlier mark, or none, nobody took since."""
        if self.term is not None and present is not None and _is_later(present, self.term):
            raise TakenOver


def _is_later(term: str, other: str) -> bool:
    """Whether that operation, or that lease of the same one, is the later; a mark that vpsd did not write counts so."""
    try:
        (operation, fence), (other_operation, other_fence) = (map(int, one.split(".")) for one in (term, other))
    except ValueError:
        return term != other
    return (operation, fence) > (other_operation, other_fence)


ANYBODY = Owner()
