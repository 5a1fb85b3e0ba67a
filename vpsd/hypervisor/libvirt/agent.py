"""Commands to QEMU's agent inside a guest. The guest controls it: do not trust its answers. Calls block."""

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import libvirt
import libvirt_qemu

from vpsd.hypervisor.protocol import GuestRun

_SECONDS = 2
_POLL_SECONDS = 0.1


def ask(domain: libvirt.virDomain, command: str, timeout_seconds: int = _SECONDS, **arguments: Any) -> Any:
    """The agent's answer, or None if there is no usable one. Underscores in names of arguments stand for hyphens."""
    request: dict[str, Any] = {"execute": command}
    if arguments:
        request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    try:
        return json.loads(libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), timeout_seconds, 0))["return"]
    except (libvirt.libvirtError, ValueError, KeyError, TypeError):
        return None


def run(domain: libvirt.virDomain, argv: Sequence[str], stdin: bytes, timeout_seconds: float) -> GuestRun | None:
    """Run a program; None where the agent does not answer, may not run programs, or the program has not ended."""
    command: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture_output": True}
    if stdin:
        command["input_data"] = base64.b64encode(stdin).decode()
    started = ask(domain, "guest-exec", **command)
    if not isinstance(started, dict) or not isinstance(started.get("pid"), int):
        return None
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        status = ask(domain, "guest-exec-status", pid=started["pid"])
        if not isinstance(status, dict):
            return None
        if status.get("exited"):
            return GuestRun(status.get("exitcode", -1), _decode(status, "out-data"), _decode(status, "err-data"))
        time.sleep(_POLL_SECONDS)
    return None


def _decode(status: dict[str, Any], name: str) -> str:
    try:
        return base64.b64decode(status.get(name, "")).decode(errors="replace")
    except (ValueError, TypeError):
        return ""
