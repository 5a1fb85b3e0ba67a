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


def demand(domain: libvirt.virDomain, command: str, timeout_seconds: int = _SECONDS, **arguments: Any) -> Any:
    """The agent's answer; raises libvirtError or ValueError. Underscores in names of arguments stand for hyphens."""
    request: dict[str, Any] = {"execute": command}
    if arguments:
        request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    answer = json.loads(libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), timeout_seconds, 0))
    if not isinstance(answer, dict) or "return" not in answer:
        raise ValueError(f"the agent answered {command} with nothing")
    return answer["return"]


def ask(domain: libvirt.virDomain, command: str, timeout_seconds: int = _SECONDS, **arguments: Any) -> Any:
    """The same; None if there is no usable answer."""
    try:
        return demand(domain, command, timeout_seconds, **arguments)
    except (libvirt.libvirtError, ValueError):
        return None


def run(domain: libvirt.virDomain, argv: Sequence[str], stdin: bytes, timeout_seconds: float) -> GuestRun | None:
    """Run a program; None where the agent does not answer, may not run programs, or the program has not ended."""
    program = start(domain, argv, stdin)
    return None if program is None else await_end(domain, program, timeout_seconds)


def start(domain: libvirt.virDomain, argv: Sequence[str], stdin: bytes = b"") -> int | None:
    """Start a program; its id, or None where the agent does not answer or may not run programs."""
    command: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture_output": True}
    if stdin:
        command["input_data"] = base64.b64encode(stdin).decode()
    started = ask(domain, "guest-exec", **command)
    program = started.get("pid") if isinstance(started, dict) else None
    return program if isinstance(program, int) else None


def await_end(domain: libvirt.virDomain, program: int, timeout_seconds: float) -> GuestRun | None:
    """Wait for a program that was started; None where it has not ended by then, or the agent does not answer."""
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        status = ask(domain, "guest-exec-status", pid=program)
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
