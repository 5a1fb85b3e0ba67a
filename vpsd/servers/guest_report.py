"""What a guest says of its first boot: how its user data went, and the public keys of its SSH server.

The guest's owner controls every byte of it: it is bounded, checked, and believed no further than that.
"""

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

from vpsd.servers.user_data import UserDataStatus

LONGEST_ERROR = 1000
_MOST_KEYS = 16
_LONGEST_REPORT = 200_000
_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60}) ([A-Za-z0-9+/]{20,8000}={0,2})(?:\s.*)?")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\ufffd]+")

# Keys are told once cloud-init's stage `init` has made them: a disk from a backup begins with those of another server.
# cloud-init's own verdict is asked for once it is final: on an emulated CPU asking takes seconds. cloud-init 22 says
# nothing of warnings, its log does; "Invalid cloud-config" it says of an empty list of users too, and gives no reason.
# Tiny Linux has no cloud-init, and writes a status of the same form.
COMMAND = (
    "/bin/sh",
    "-c",
    """
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
    if ! [ -e /run/cloud-init/enabled ] || [ -e /run/cloud-init/result.json ] ||
        sed -n '/"init": {/,/}/p' /run/cloud-init/status.json | grep -q '"finished": [0-9]'; then
      for key in /etc/ssh/ssh_host_*_key.pub; do [ -e "$key" ] && head -n 1 "$key"; done
      for key in /etc/dropbear/dropbear_*_host_key; do [ -e "$key" ] && dropbearkey -y -f "$key" 2>/dev/null; done
    fi
    echo; echo --
    if [ -e /var/lib/cloud/instance/tiny-status ]; then cat /var/lib/cloud/instance/tiny-status
    elif [ -e /run/cloud-init/result.json ]; then
      cloud-init status --format json
      echo; echo --
      sed -n '/eprecat\\|DEPRECAT\\|Invalid cloud-config/d; s/.*\\[WARNING\\]: //p' /var/log/cloud-init.log | head -n 1
    fi
    exit 0
    """,
)
COMMAND_SECONDS = 20


class HostKey(msgspec.Struct, frozen=True):
    """A public key by which a guest's SSH server can be told."""

    type: str  # ssh-ed25519
    fingerprint: str  # SHA256:…, as ssh and ssh-keygen -l print it
    public_key: str  # type and key in base64, as in known_hosts


class Report(msgspec.Struct, frozen=True):
    """What a guest said; a status of None: not yet."""

    host_keys: list[HostKey]
    status: UserDataStatus | None = None
    error: str | None = None  # the first, where there is one


def read_report(text: str) -> Report:
    """What `COMMAND` printed in a guest."""
    keys, verdict, warning = (text[:_LONGEST_REPORT].split("\n--\n") + ["", ""])[:3]
    host_keys = [key for line in keys.splitlines() if (key := _host_key(line)) is not None][:_MOST_KEYS]
    try:
        said = msgspec.json.decode(verdict)
    except (msgspec.DecodeError, RecursionError):
        said = None
    status, error = _verdict(said) if isinstance(said, dict) else (None, None)
    if status is UserDataStatus.DONE and warning.strip():
        status, error = UserDataStatus.DEGRADED, warning
    return Report(host_keys, status, None if error is None else _printable(error))


def _verdict(said: dict[str, Any]) -> tuple[UserDataStatus | None, str | None]:
    """The form of `cloud-init status --format json`; recoverable errors are told since version 23.4."""
    errors, recoverable = said.get("errors"), said.get("recoverable_errors")
    first = next((str(error) for error in errors), None) if isinstance(errors, list) else None
    if isinstance(recoverable, dict):  # what is deprecated works
        recoverable = {level: texts for level, texts in recoverable.items() if level != "DEPRECATED"}
    match said.get("status"):
        case "error":
            return UserDataStatus.ERROR, first or "The guest says that there was an error, and not which."
        case "done" | "degraded done" if isinstance(recoverable, dict) and recoverable:
            listed = [text for texts in recoverable.values() if isinstance(texts, list) for text in texts]
            return UserDataStatus.DEGRADED, next(map(str, listed), None)
        case "done" | "degraded done":
            return UserDataStatus.DONE, None
        case "disabled" | "unknown":
            return UserDataStatus.UNKNOWN, None
    return None, None


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text).strip()[:LONGEST_ERROR]


def _host_key(line: str) -> HostKey | None:
    """A line of a .pub file (RFC 4253 6.6: the key names its own type)."""
    found = _KEY.fullmatch(line.strip())
    if found is None:
        return None
    try:
        content = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return None
    name = found[1].encode()
    if not content.startswith(len(name).to_bytes(4, "big") + name):
        return None
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return HostKey(found[1], f"SHA256:{digest}", f"{found[1]} {found[2]}")
