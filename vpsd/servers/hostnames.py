"""Hostnames that a guest must not have: it binds them, whole and up to the first dot, to itself in its /etc/hosts."""

import re

from vpsd.errors import Fault

# What /etc/hosts of the images binds already (Debian's cloud-init template, and Ubuntu's with two more).
_BOUND = re.compile(r"localhost.*|broadcasthost|ip6-(localhost|loopback|localnet|mcastprefix|all(nodes|routers|hosts))")
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")
_FIRST_ADDRESS = 1 << 24  # 1.0.0.0; below are those of "this network" (RFC 791), which are nobody's


class IsLocalhost(Fault, frozen=True):
    """The name means the machine itself, on every machine (RFC 6761 section 6.3)."""

    hostname: str

    def __str__(self) -> str:
        return f"{self.hostname!r} is what every machine calls itself. Choose another hostname."


class IsAddress(Fault, frozen=True):
    """Programs read the name as an IPv4 address (inet_aton(3); WHATWG URL, "ends in a number")."""

    hostname: str

    def __str__(self) -> str:
        return f"{self.hostname!r} reads as an IPv4 address. Give its first and last label a letter, like web.example."


class NotAsHostname(Fault, frozen=True):
    """A server's name that would be its hostname, and cannot be."""

    reason: str

    def __str__(self) -> str:
        return f"{self.reason} Or keep the name, and give a hostname beside it."


def refusal(hostname: str) -> Fault | None:
    """Why a guest must not have this hostname; its syntax is right."""
    labels = hostname.lower().split(".")
    if _BOUND.fullmatch(labels[0]) or labels[-1] == "localhost":
        return IsLocalhost(hostname)
    if len(labels) > 1 and _NUMBER.fullmatch(labels[-1]):
        return IsAddress(hostname)
    # The first label is what the guest is called, and an address by itself: 134744072 is 8.8.8.8.
    if _NUMBER.fullmatch(labels[0]) and not 0 < _value(labels[0]) < _FIRST_ADDRESS:
        return IsAddress(labels[0])
    return None


def _value(number: str) -> int:
    if number.startswith("0x"):
        return int(number[2:] or "0", 16)
    return int(number, 8 if re.fullmatch("0[0-7]+", number) else 10)
