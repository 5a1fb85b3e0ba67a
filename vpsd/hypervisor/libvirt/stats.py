"""Statistics of a running guest, from libvirt and from the agent inside; calls block."""

from collections.abc import Mapping
from typing import Any

import libvirt

from vpsd.hypervisor.libvirt import agent
from vpsd.hypervisor.protocol import GuestStats

_IGNORED_FILE_SYSTEMS = {
    "iso9660",
    "udf",
    "squashfs",
    "vfat",
}  # seeds and boot partitions are not filled by the customer


def measure(host: libvirt.virConnect, domain: libvirt.virDomain, mac: str) -> GuestStats:
    """The available statistics; None for the rest, and all None if the guest is not running."""
    if not domain.isActive():
        return GuestStats()
    wanted = libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_BALLOON
    ((_, stats),) = host.domainListGetStats([domain], wanted, 0)
    received, sent = _traffic(agent.ask(domain, "guest-network-get-interfaces"), mac)
    return GuestStats(
        cpu_seconds=stats["cpu.time"] / 1e9 if "cpu.time" in stats else None,
        memory_used_mb=_memory_used_mb(stats),
        disk_used_bytes=_disk_used_bytes(agent.ask(domain, "guest-get-fsinfo")),
        received_bytes=received,
        sent_bytes=sent,
    )


_MAX_BYTES = 1 << 53


def _memory_used_mb(stats: Mapping[str, int]) -> int | None:
    """Memory that the guest's kernel cannot reclaim, as reported by its balloon driver."""
    total = stats.get("balloon.available")
    free = stats.get("balloon.usable", stats.get("balloon.unused"))
    if total is None or free is None:
        return None
    return max(0, total - free) // 1024


def _disk_used_bytes(answer: Any) -> int | None:
    """The sum of all file systems on disks, each counted once however often it is mounted."""
    used: dict[str, int] = {}
    for one in _dicts(answer):
        size = _count(one.get("used-bytes"))
        if size is not None and one.get("type") not in _IGNORED_FILE_SYSTEMS:
            used[str(one.get("name"))] = size
    return sum(used.values()) if used else None


def _traffic(answer: Any, mac: str) -> tuple[int | None, int | None]:
    """Bytes received and sent by the guest's NIC; bridges and tunnels inside would count them twice."""
    for one in _dicts(answer):
        statistics = one.get("statistics")
        if str(one.get("hardware-address", "")).lower() == mac and isinstance(statistics, dict):
            return _count(statistics.get("rx-bytes")), _count(statistics.get("tx-bytes"))
    return None, None


def _count(value: Any) -> int | None:
    """The value if it is a plausible number: root in the guest can report anything."""
    return value if isinstance(value, int) and 0 <= value < _MAX_BYTES else None


def _dicts(answer: Any) -> list[dict[str, Any]]:
    return [one for one in answer if isinstance(one, dict)] if isinstance(answer, list) else []
