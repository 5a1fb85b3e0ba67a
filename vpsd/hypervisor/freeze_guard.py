"""The program that thaws a guest's file systems when nobody else does, from the inside.

Images that vpsd builds have it as the hook of QEMU's agent; in others a driver starts it through the agent.
"""

from importlib.resources import files

FREEZE_GUARD = (files("vpsd.hypervisor") / "freeze-guard").read_text()
"""A shell script. Its arguments: freeze or thaw, and `alone` where the agent itself sees to hooks."""
