"""The serial console takes the password, and nothing else."""

import asyncio
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from vpsd.hypervisor.libvirt.console import Console

pytestmark = pytest.mark.guest


async def test_the_serial_console_takes_the_password_and_no_other(host: Host, first: Any, first_login: Login) -> None:
    driver = host.driver()
    try:
        console = await driver.console(host.name(first["id"]))
        await log_in(console, "wrong")
        await until_shown(console, "incorrect")
        await log_in(console, first["password"])
        await until_shown(console, "# ")
        await console.write(b"echo here $((6 * 7))\n")
        await until_shown(console, "here 42")
        await console.write(b"exit\n")
        console.close()
    finally:
        await driver.close()


async def log_in(console: Console, password: str) -> None:
    await console.write(b"\n")
    await until_shown(console, "login:")
    await console.write(b"root\n")
    await until_shown(console, "Password:")
    await console.write(password.encode() + b"\n")


async def until_shown(console: Console, text: str) -> None:
    shown = ""
    try:
        async with asyncio.timeout(60):
            while text not in shown:
                chunk = await console.read()
                assert chunk, "the console ended"
                shown += chunk.decode(errors="replace")
    except TimeoutError:
        pytest.fail(f"the console never showed {text!r}, but {shown!r}")
