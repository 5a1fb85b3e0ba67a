"""vpsd as people run it: the installed command, in a process and a data folder of its own."""

import functools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

PROGRAM = Path(sys.executable).with_name("vpsd")
_START_SECONDS = 60.0
_END_SECONDS = 60.0
BOOTS_SECONDS = 900.0  # a boot may have its 240 s twice, and wait for a worker that sees to another one before


def until(tells: Callable[[], T], waiting_for: str, limit_seconds: float = 120) -> T:
    """Ask a process until it tells something true."""
    deadline = time.monotonic() + limit_seconds
    while not (told := tells()):
        assert time.monotonic() < deadline, f"waited {limit_seconds} s for {waiting_for}; at the end: {told}"
        time.sleep(0.1)
    return told


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """The environment of the tests with these settings of vpsd and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VPSD_")}
    return {**kept, "COLUMNS": "200", **{f"VPSD_{name.upper()}": str(value) for name, value in settings.items()}}


class Vpsd:
    """A vpsd that can be started, spoken to, and ended in more ways than one."""

    def __init__(self, *, beside: "Vpsd | None" = None, program: Path = PROGRAM, **settings: object) -> None:
        """`beside`: another one whose data folder it shares, and who takes that away in the end."""
        self._program = program
        # short: unix sockets lie below it
        self.data: Path = Path(tempfile.mkdtemp(prefix="vpsd-", dir="/tmp")) if beside is None else beside.data
        self._beside = beside
        self.listen = f"127.0.0.1:{free_port()}"
        self.environment = environment(data_dir=self.data, listen=self.listen, **settings)
        self._log = self.data.with_name(f"{self.data.name}{'' if beside is None else '-beside'}.log")
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._http = self._client()

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.listen}", timeout=30)

    def start(self, *, well: bool = True, part: str = "up") -> float:
        """Start it and wait until it is well, or just answers; returns the seconds until /health answered."""
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [self._program, part], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        begun = time.monotonic()
        until(self._answers, "an answer from vpsd", _START_SECONDS)
        seconds = time.monotonic() - begun
        if well:
            until(self.is_well, "the host", _START_SECONDS)
        return seconds

    def _answers(self) -> httpx.Response | None:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        try:
            return self._http.get("/health")
        except httpx.TransportError:
            return None

    def is_well(self) -> bool:
        """Whether it and its host answer."""
        answer = self._answers()
        return answer is not None and answer.json()["hypervisor"]["status"] == "ok"

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        return self._end(signal.SIGINT)

    def terminate(self) -> int:
        """What a system's shutdown sends; returns the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    @property
    def has_begun(self) -> bool:
        """Whether it was started at all."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def _end(self, sign: signal.Signals) -> int:
        assert self._process is not None
        self._http.close()  # an idle connection is given a moment at the end
        self._http = self._client()
        self._process.send_signal(sign)
        status = self._process.wait(_END_SECONDS)
        self._process = None
        return status

    def discard(self) -> None:
        """End it, and leave nothing of it behind."""
        if self._process is not None:
            self.interrupt()
        self._http.close()
        self._log.unlink(missing_ok=True)
        if self._beside is None:
            shutil.rmtree(self.data)

    def said(self) -> str:
        """All that it printed since its last start."""
        return self._log.read_bytes()[self._log_start :].decode()

    @functools.cached_property
    def token(self) -> str:
        """The first token."""
        return (self.data / "token").read_text().strip()

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> httpx.Response:
        """Speak to the API; `path` begins after /api/v1/."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return self._http.request(method, f"/api/v1/{path}", headers=headers, json=body)

    def get(self, path: str) -> Any:
        """What the API says of something."""
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        """Have the API do something."""
        answer = self.ask("POST", path, body)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def create(self, name: str, **body: Any) -> Any:
        """Order a server, a tiny one unless the body says otherwise; returns the answer."""
        return self.post("servers/", {"name": name, "plan_id": 4, "os_id": 1, "location": "us-west", **body})

    def delete(self, server_id: int) -> None:
        """Delete a server."""
        answer = self.ask("DELETE", f"servers/{server_id}/")
        assert answer.status_code == 204, answer.text

    def until_status(self, server_id: int, status: str, limit_seconds: float = BOOTS_SECONDS) -> Any:
        """Wait for a server, also through a boot that hangs and is tried once more; returns its detail."""

        def tells() -> Any:
            detail = self.get(f"servers/{server_id}/")
            assert detail["status"] != "error" or status == "error", detail
            return detail if detail["status"] == status else None

        return until(tells, f"server {server_id} to be {status}", limit_seconds)

    def until_copied(self, made: dict[str, Any], what: str = "backup", status: str = "completed") -> Any:
        """Wait for a backup or snapshot; returns what the API then says of it."""

        def tells() -> Any:
            found = self.get(f"{what}s/{made['id']}/")
            assert found["status"] in (status, "in_progress"), found
            return found if found["status"] == status else None

        return until(tells, f"{what} {made['id']} to be {status}", 400)

    def operations(self, server_id: int) -> list[dict[str, Any]]:
        """The history of a server."""
        results: list[dict[str, Any]] = self.get(f"servers/{server_id}/operations/")["results"]
        return results

    def objects(self) -> list[Path]:
        """What lies on the backups' target besides its mark."""
        # `os.walk`, unlike `Path.rglob`, passes over folders that are deleted meanwhile.
        files = (Path(folder, name) for folder, _, names in os.walk(self.data / "backups") for name in names)
        return [path for path in files if path.name != "vpsd-target.json"]

    def health(self) -> httpx.Response:
        """What it says of itself."""
        return self._http.get("/health")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Read the database beside it: deleted servers are nothing that the API speaks of."""
        database = sqlite3.connect(f"file:{self.data}/vpsd.sqlite?mode=ro", uri=True)
        try:
            return database.execute(statement).fetchall()
        finally:
            database.close()

    def run(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run an operator's command beside it."""
        return run(
            *arguments,
            environment={**self.environment, **environment(**settings)} if settings else self.environment,
            program=self._program,
        )

    def run_json_with_progress(self, *arguments: str) -> Any:
        """Run an operator's command for its JSON, beside which it shows progress."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run_json(self, *arguments: str) -> Any:
        """Run an operator's command for its JSON."""
        done = self.run(*arguments, "--json")
        assert done.stderr == "", done.stderr
        return json.loads(done.stdout)


def run(
    *arguments: str, environment: dict[str, str], timeout_seconds: float = 120, program: Path = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end."""
    return subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        env=environment,
        check=False,
    )
