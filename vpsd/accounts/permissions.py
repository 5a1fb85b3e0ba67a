"""Permissions of tokens, named as in the official client, and the most that each role allows.

A permission is `section:what`: `servers:read`, `servers:*`, `*:*`. A request may do what its token permits and, if the
token belongs to a person, only what that person's role allows. `operator:*` is for whoever runs vpsd: only the command
line gives it, or a token that has it.
"""

from collections.abc import Collection
from enum import StrEnum

SECTIONS = ("servers", "ssh_keys", "billing", "tokens")
OPERATOR = "operator:*"  # every account's servers; it is part of no other permission, and of no role
KNOWN = ("*:*", "*:read", *(f"{section}:{what}" for section in SECTIONS for what in ("*", "read")), OPERATOR)


class Role(StrEnum):
    """A person's role in an account."""

    OWNER = "owner"
    MEMBER = "member"
    READ_ONLY = "read-only"


OF_ROLE: dict[Role, tuple[str, ...]] = {
    Role.OWNER: ("*:*",),
    Role.MEMBER: ("servers:*", "ssh_keys:*", "billing:read"),
    Role.READ_ONLY: ("servers:read", "ssh_keys:read", "billing:read"),
}


def covers(held: Collection[str], needed: str) -> bool:
    """Whether permissions that are held include the needed one."""
    if needed == OPERATOR:
        return needed in held
    section, _, what = needed.partition(":")
    return any(name in held for name in ("*:*", f"*:{what}", f"{section}:*", needed))


def unknown(names: Collection[str]) -> list[str]:
    """Those that are not permissions."""
    return [name for name in names if name not in KNOWN]


def may(held: Collection[str], role: Role | None, needed: str) -> bool:
    """Whether both the token's permissions and its person's role allow it."""
    return covers(held, needed) and (role is None or covers(OF_ROLE[role], needed))


def effective(held: Collection[str], role: Role | None) -> list[str]:
    """What remains of a token's permissions under the role of its person."""
    if role is None:
        return sorted(held)
    allowed = OF_ROLE[role]
    both = {name for name in held if covers(allowed, name)}
    return sorted(both | {name for name in allowed if covers(held, name)})
