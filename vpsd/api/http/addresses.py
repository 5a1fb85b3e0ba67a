"""Where a request comes from, and by which address its sender knows vpsd, with and without proxies in between.

What a stranger says of either is not believed: X-Forwarded-… counts from a trusted proxy alone, and a Host only where
it names the very address that the connection came in at. An answer that sent somebody's token elsewhere would be worse
than one that does not say where it came from.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from vpsd.settings import HOST, PATH, Settings

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

UNKNOWN = "unknown"

_PORTS = {"http": 80, "https": 443}
_OURS = ("/api/", "/health")


class Sender(msgspec.Struct, frozen=True):
    """Who sent a request: the address, what of it limits count by, and what addresses of vpsd begin with for them.

    `base` is `https://host/prefix`, or only the prefix where nobody who is trusted tells the host. `path` is the
    request's own, without the prefix.
    """

    address: str
    network: str
    base: str
    path: str


class Senders:
    """Tells them, as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._trusted = settings.proxy_networks
        self._public_url = (settings.public_url or "").rstrip("/")
        listen = settings.host_port[0].lower()
        self._name = listen if read_address(listen) is None else ""  # an address is known by the connection

    def of(self, scope: Any) -> Sender:
        """Who sent the request of an ASGI scope."""
        client, headers = scope.get("client"), scope["headers"]
        peer = read_address(client[0]) if client else None
        trusted = peer is not None and self._trusts(peer)
        address = self._first_untrusted(peer, headers) if peer is not None and trusted else peer
        base = self._public_url or self._base(scope, trusted)
        prefix, path = urlsplit(base).path, scope["path"]
        # A proxy may leave the prefix to us.
        if prefix and path.startswith(prefix) and path[len(prefix) :].startswith(_OURS):
            path = path[len(prefix) :]
        return Sender(*(UNKNOWN, UNKNOWN) if address is None else (str(address), network_of(address)), base, path)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)

    def _first_untrusted(self, peer: Address, headers: Headers) -> Address:
        """The last entry of X-Forwarded-For that no trusted proxy vouches for; whatever stands before it is hearsay."""
        for entry in reversed(_entries(headers, b"x-forwarded-for")):
            address = read_address(entry)
            if address is None:  # unknown, _hidden, nonsense: as far as is known it came from that proxy
                return peer
            peer = address
            if not self._trusts(address):
                break
        return peer

    def _base(self, scope: Any, trusted: bool) -> str:
        headers, scheme = scope["headers"], scope["scheme"]
        if trusted and any(name.startswith(b"x-forwarded-") for name, _ in headers):
            return _as_forwarded(headers)
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        return f"{scheme}://{hosts[0]}" if len(hosts) == 1 and self._is_here(hosts[0], scope) else ""

    def _is_here(self, host: str, scope: Any) -> bool:
        """Whether a Host names the address that the connection came in at."""
        server = scope.get("server")
        match = re.fullmatch(HOST, host)
        if not server or match is None:
            return False
        name, usual = match["name"].strip("[]").lower(), _PORTS[scope["scheme"]]
        if int(match["port"] or usual) != (server[1] or usual):
            return False
        here = read_address(server[0])
        names = {str(server[0]).lower(), self._name} | ({"localhost"} if here and here.is_loopback else set())
        return name in names or (here is not None and read_address(name) == here)


def read_address(text: str) -> Address | None:
    """An IP address as proxies write it: with a port, in brackets, in quotes, with a zone; None where it is none.

    An IPv4 address mapped into IPv6 (RFC 4291, section 2.5.5.2) is that IPv4 address.
    """
    text = text.strip().strip('"')
    if match := re.fullmatch(r"\[([^\]]*)\](:\d*)?|(\d+\.\d+\.\d+\.\d+):\d*", text):
        text = match[1] or match[3] or ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(address: Address) -> str:
    """What limits count as one sender: an IPv4 address, or the /64 of an IPv6 one, of which each host has plenty."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _entries(headers: Headers, name: bytes) -> list[str]:
    """The values of a header that is a list, however often it was sent, without empty ones."""
    values = [value.decode("latin-1").split(",") for header, value in headers if header == name]
    return [entry.strip() for entries in values for entry in entries if entry.strip()]


def _as_forwarded(headers: Headers) -> str:
    """What a trusted proxy says; of several, the last is its own. Only the prefix where it tells no scheme or host."""
    said = [_entries(headers, b"x-forwarded-" + name)[-1:] for name in (b"proto", b"host", b"prefix")]
    scheme, host, prefix = ("".join(value) for value in said)
    scheme, prefix = scheme.lower(), prefix.rstrip("/")
    if not re.fullmatch(PATH, prefix):
        return ""
    if scheme not in _PORTS or not re.fullmatch(HOST, host):
        return prefix
    return f"{scheme}://{host.removesuffix(f':{_PORTS[scheme]}')}{prefix}"
