"""A vpsd that runs on the simulator, for the operator's commands beside it."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import Vpsd, environment
from vpsd.cli import main as cli
from vpsd.cli.output import console


@pytest.fixture(scope="session")
def vpsd() -> Iterator[Vpsd]:
    """A running vpsd; tests share it, so what they make has names of its own."""
    running = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    try:
        running.start()
        yield running
        assert running.interrupt() == 0
    finally:
        running.discard()


class Command:
    """The `vpsd` command, entered where its script enters it, in this process: so many of them cost little."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], known: dict[str, str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._environment = known

    def __call__(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end; settings stand beside those of the running vpsd."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            for name, value in {**self._environment, **environment(**settings)}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["vpsd", *arguments])
            patch.setattr(console, "width", 200)  # as COLUMNS says to processes of their own
            with pytest.raises(SystemExit) as end:
                cli.main()
        out, err = self._capsys.readouterr()
        code = end.value.code
        return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, out, err)

    def json(self, *arguments: str, **settings: object) -> Any:
        """What it says to programs."""
        done = self(*arguments, "--json", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def refused(self, *arguments: str, **settings: object) -> str:
        """The one line in which it refuses."""
        done = self(*arguments, **settings)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("vpsd: ")
        assert done.stderr.count("\n") == 1
        return str(done.stderr.strip())


@pytest.fixture
def command(vpsd: Vpsd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The operator's command beside the running vpsd."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Command(monkeypatch, capsys, vpsd.environment)
    root.handlers[:] = handlers  # a command sets up the logs of its process
    root.setLevel(level)
