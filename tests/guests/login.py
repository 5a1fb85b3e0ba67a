"""Logging in to guests as their owners do: with the ssh line that the API gives."""

import os
import shlex
import subprocess
from pathlib import Path

_OPTIONS = {
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
    "ConnectTimeout": "110",
    "NumberOfPasswordPrompts": "1",
}
_LIMIT_SECONDS = 120


def ssh(
    line: str, command: str, *, key: Path | None = None, password: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a guest; `line` is what its detail says, like `ssh root@127.10.0.2`."""
    options = {**_OPTIONS, **(_by_key(key) if key else _BY_PASSWORD)}
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    program, *where = shlex.split(line)
    assert program == "ssh"
    # ssh asks this program for the password, which reads it from the environment
    asking = {"SSH_ASKPASS": str(Path(__file__).with_name("askpass.sh")), "SSH_ASKPASS_REQUIRE": "force"}
    return subprocess.run(
        [program, *flags, *where, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        env={**os.environ, **asking, "TEST_PASSWORD": password or ""},
        check=False,
    )


_BY_PASSWORD = {"PreferredAuthentications": "password", "PubkeyAuthentication": "no"}


def _by_key(key: Path) -> dict[str, str]:
    return {"BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityFile": str(key)}


class Login:
    """A server that one may log in to."""

    def __init__(self, line: str, *, key: Path | None = None, password: str | None = None) -> None:
        self._line, self._key, self._password = line, key, password

    def run(self, command: str) -> str:
        """What a command in the guest prints; it has to succeed."""
        done = ssh(self._line, command, key=self._key, password=self._password)
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def answers(self) -> bool:
        """Whether one can log in by now."""
        return ssh(self._line, "true", key=self._key, password=self._password).returncode == 0

    def try_to(self, command: str) -> None:
        """Run a command that may take the connection down with it."""
        ssh(self._line, command, key=self._key, password=self._password)

    @property
    def boot_id(self) -> str:
        """What changes with every boot, and with nothing else."""
        return self.run("cat /proc/sys/kernel/random/boot_id")

    @property
    def machine_id(self) -> str:
        """What belongs to the machine for its life."""
        return self.run("cat /etc/machine-id")
