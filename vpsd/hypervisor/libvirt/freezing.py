"""Freezes a guest's file systems for the moment in which an export begins, and never for longer; calls block.

The agent freezes whatever is mounted if it is not told what. It then waits for ever for a file system that lies in a
file of another one which it has frozen before, and answers no more: so it gets a list.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import libvirt
import msgspec

from vpsd.hypervisor.freeze_guard import FREEZE_GUARD
from vpsd.hypervisor.libvirt import agent

log = logging.getLogger(__name__)

_AGENT_SECONDS = 5  # an agent that has not frozen by then is told to thaw, and the export begins without it
_LONGEST_SECONDS = 10.0  # then it is told to thaw although the export has not begun; guests of ours thaw after 20
_WRITE_SECONDS = 10.0
_MOST_NAMED = 5
_AGENT_SAID = re.compile(r"agent command '[^']*': (.+)")  # as libvirt quotes it

_NOTHING_TO_FREEZE = {"iso9660", "udf", "squashfs", "erofs", "cramfs"}  # nobody writes to these
_CANNOT_FREEZE = {"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "minix"}
# Sets the time of a folder to what it is: a write that leaves nothing behind.
_WRITE = 'for folder; do touch -m -r "$folder" "$folder"; done'


class Mounts(msgspec.Struct, frozen=True):
    """The mount points to freeze, one for each file system, and what is left out, with the reason."""

    freeze: tuple[str, ...]
    left_out: tuple[str, ...]


class Freeze(msgspec.Struct):
    """What became of a freeze."""

    detail: str = ""
    frozen: bool = False  # while the export began
    asked: bool = False  # the agent was told to freeze, and may still do so
    ms: int | None = 0  # for how long the guest could not write; None: nobody knows


def choose_mounts(fsinfo: Any) -> Mounts:
    """Choose from an answer to guest-get-fsinfo: file systems on disks of the host, each once.

    The agent freezes whatever is mounted last at or above a path, so paths below anything else are left out.
    """
    entries = [_Entry.of(one) for one in fsinfo if isinstance(one, dict)] if isinstance(fsinfo, list) else []
    entries = [entry for entry in entries if entry.kind not in _NOTHING_TO_FREEZE and entry.path.startswith("/")]
    others = [entry.path for entry in entries if not entry.on_disk]
    chosen: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for entry in sorted(entries, key=lambda one: (len(one.path), one.path)):  # of bind mounts, the original
        if not entry.on_disk:
            left_out.setdefault(entry.device, f"{entry.path} ({entry.device} is no disk of the server)")
        elif entry.kind in _CANNOT_FREEZE:
            left_out.setdefault(entry.device, f"{entry.path} ({entry.kind} cannot be frozen)")
        elif any(_is_at_or_below(entry.path, other) for other in others):
            left_out.setdefault(entry.device, f"{entry.path} (it is below what is no disk of the server)")
        else:
            chosen.setdefault(entry.device, entry.path)
    return Mounts(tuple(chosen.values()), tuple(text for name, text in left_out.items() if name not in chosen))


@contextlib.contextmanager
def frozen(domain: libvirt.virDomain) -> Iterator[Freeze]:
    """Freeze the guest's file systems, if its agent does so in time, and thaw them at the end."""
    freeze = Freeze()
    mounts = _ask_for_mounts(domain, freeze)
    if not mounts.freeze:
        yield freeze
        return
    freeze.asked = True
    _guard(domain, "freeze")  # the image may have none
    began = time.monotonic()
    watchdog = threading.Timer(_LONGEST_SECONDS, _thaw, [domain])  # the export may hang
    watchdog.daemon = True
    watchdog.start()
    count, error = 0, ""
    try:
        answer = agent.demand(domain, "guest-fsfreeze-freeze-list", _AGENT_SECONDS, mountpoints=list(mounts.freeze))
        count = answer if isinstance(answer, int) else 0
    except (libvirt.libvirtError, ValueError) as failure:
        error = _first_line(failure)
        log.warning("%s: not frozen: %s", domain.name(), error)
        _thaw(domain)  # the freeze may have succeeded late, or in part
    try:
        yield freeze
    finally:
        watchdog.cancel()
        in_time = time.monotonic() - began < _LONGEST_SECONDS
        thawed = _thaw(domain) if count else 0
        ms = round((time.monotonic() - began) * 1000) if count else 0
        freeze.ms = None if error or thawed is None else ms
        freeze.frozen = count >= len(mounts.freeze) and (in_time if thawed is None else thawed > 0)
        freeze.detail = _describe(mounts, count, thawed, freeze, error)
        if thawed is not None and not error:
            _guard(domain, "thaw")


def ensure_thawed(domain: libvirt.virDomain) -> bool | None:
    """Thaw what the agent has frozen, and have the guest write; None if the agent does not answer."""
    domain.agentSetResponseTimeout(_AGENT_SECONDS, 0)
    status = agent.ask(domain, "guest-fsfreeze-status", _AGENT_SECONDS)
    if status is None:
        return None
    if status == "frozen" and _thaw(domain) is None:
        return False
    folders = choose_mounts(agent.ask(domain, "guest-get-fsinfo", _AGENT_SECONDS)).freeze
    program = agent.start(domain, ["/bin/sh", "-c", _WRITE, "sh", *folders])
    if program is None:
        return True  # it may not run programs, but it says that nothing is frozen
    if agent.await_end(domain, program, _WRITE_SECONDS) is not None:
        return True
    return None if agent.ask(domain, "guest-ping") is None else False


def thaw_if_frozen(domain: libvirt.virDomain) -> None:
    """Thaw what the agent says it has frozen."""
    if agent.ask(domain, "guest-fsfreeze-status") == "frozen":
        _thaw(domain)


def _ask_for_mounts(domain: libvirt.virDomain, freeze: Freeze) -> Mounts:
    try:
        domain.agentSetResponseTimeout(_AGENT_SECONDS, 0)
        mounts = choose_mounts(agent.demand(domain, "guest-get-fsinfo", _AGENT_SECONDS))
    except (libvirt.libvirtError, ValueError) as error:
        log.info("%s: exported without freezing its file systems: %s", domain.name(), error)
        freeze.detail = "Not frozen: the guest's agent did not answer."
        if isinstance(error, ValueError) or error.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            freeze.detail = f"Not frozen: the guest's agent does not say what is mounted: {_first_line(error)}."
        return Mounts((), ())
    if not mounts.freeze:
        freeze.detail = _join("Not frozen: the guest's agent knows no file system that can be.", mounts)
    return mounts


def _thaw(domain: libvirt.virDomain) -> int | None:
    """How many file systems the agent has thawed; None if it did not answer."""
    count = agent.ask(domain, "guest-fsfreeze-thaw", _AGENT_SECONDS)
    return count if isinstance(count, int) else None


def _guard(domain: libvirt.virDomain, action: str) -> None:
    """Set up or end the guard in the guest; without effect where the agent may not run programs."""
    program = agent.start(domain, ["/bin/sh", "-c", FREEZE_GUARD, "freeze-guard", action, "alone"])
    if program is None or agent.await_end(domain, program, _AGENT_SECONDS) is None:
        log.info("%s: nothing in it thaws its file systems should its agent die", domain.name())


def _describe(mounts: Mounts, count: int, thawed: int | None, freeze: Freeze, error: str) -> str:
    names = _names(mounts.freeze)
    if error:
        text = f"Not frozen: the guest's agent could not freeze {names} in time: {error}."
    elif count < len(mounts.freeze):
        text = f"Only {count} of {len(mounts.freeze)} file systems were frozen: {names}."
    elif thawed is not None and not freeze.frozen:
        text = f"Frozen: {names}. They were thawed before the copy had begun."
    elif thawed is None:
        text = f"Frozen: {names}. The guest's agent did not answer when it was told to thaw them."
    else:
        text = f"Frozen for {freeze.ms} ms: {names}."
    return _join(text, mounts)


def _first_line(error: Exception) -> str:
    """What the guest's agent said; what the host says of it is not for customers."""
    line = str(error).partition("\n")[0]
    if isinstance(error, libvirt.libvirtError):
        said = _AGENT_SAID.search(line)
        silent = error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
        line = said[1] if said else "Guest agent is not responding" if silent else "the host could not ask it"
    return line[:200].rstrip(".")


def _join(text: str, mounts: Mounts) -> str:
    return f"{text} Not frozen: {_names(mounts.left_out)}." if mounts.left_out else text


def _names(names: Sequence[str]) -> str:
    """The guest says how many there are and what they are called: neither is unlimited here."""
    more = "" if len(names) <= _MOST_NAMED else f" and {len(names) - _MOST_NAMED} more"
    return ", ".join(name[:100] for name in names[:_MOST_NAMED]) + more


def _is_at_or_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


class _Entry(msgspec.Struct, frozen=True):
    """One mount, as the agent says it."""

    device: str
    path: str
    kind: str
    on_disk: bool

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "_Entry":
        device, path, kind = (str(entry.get(name, "")) for name in ("name", "mountpoint", "type"))
        disks = entry.get("disk")
        return cls(device, path, kind, isinstance(disks, list) and bool(disks) and all(map(_is_real, disks)))


def _is_real(disk: Any) -> bool:
    """Whether it sits on the guest's PCI bus: what the kernel makes of files and memory does not."""
    controller = disk.get("pci-controller") if isinstance(disk, dict) else None
    domain = controller.get("domain") if isinstance(controller, dict) else None
    return isinstance(domain, int) and domain >= 0
