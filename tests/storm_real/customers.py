"""A customer who wants servers, tells what they shall be, and asks again whenever it is not known what came of it."""

import random
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import httpx

from tests.storm_real.cloud import LOCATIONS

_ANSWER_SECONDS = 180.0  # until some API has answered
_PAUSE_SECONDS = 0.2
_AGAIN = {"unavailable", "database_unavailable", "outcome_unknown", "still_running"}


class Customer:
    """Asks one thing after the other, of whichever API answers."""

    def __init__(self, number: int, addresses: Sequence[str], token: str, operator: str, seed: int) -> None:
        self._number = number
        self._chance = random.Random(f"{seed} customer {number}")
        self._addresses = list(addresses)
        self._http = httpx.Client(timeout=30)
        self._token, self._operator = token, operator
        self.wishes: dict[int, str] = {}  # by server: active | stopped | gone
        self.refused = self.moves = 0
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer, however often it takes to ask: with one key, so that it is done once."""
        headers = {"Authorization": f"Bearer {self._operator if path.startswith('operator/') else self._token}"}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.UUID(int=self._chance.getrandbits(128)))
        until = time.monotonic() + _ANSWER_SECONDS
        while True:
            self._addresses.append(self._addresses.pop(0))
            try:
                url = f"http://{self._addresses[0]}/api/v1/{path}"
                answer = self._http.request(method, url, json=body, headers=headers)
                if answer.status_code not in (409, 503) or answer.json().get("code") not in _AGAIN:
                    return answer
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                raise TimeoutError(f"no answer to {method} {path} in {_ANSWER_SECONDS} s")
            time.sleep(_PAUSE_SECONDS)

    def create(self, name: str) -> int | None:
        """Order a server; its id, None where it was refused."""
        body = {"name": name, "plan_id": 4, "os_id": 1, "location": self._chance.choice(LOCATIONS)}
        answer = self.ask("POST", "servers/", body)
        if answer.status_code != 201:
            self.refused += 1
            return None
        server_id: int = answer.json()["id"]
        self.wishes[server_id] = "active"
        return server_id

    def command(self, server_id: int, command: str) -> bool:
        """Give a server a command; whether it was accepted."""
        if command == "delete":
            answer = self.ask("DELETE", f"servers/{server_id}/")
            accepted = answer.status_code in (204, 404)  # 404: the answer to the first try was lost
        else:
            answer = self.ask("POST", f"servers/{server_id}/{command}/")
            accepted = answer.status_code == 200
        if accepted:
            wish = {"delete": "gone", "stop": "stopped"}.get(command, "active")
            self.wishes[server_id] = wish
        else:
            self.refused += 1
        return accepted

    def status(self, server_id: int) -> str:
        """A server's status, `gone` where there is none."""
        answer = self.ask("GET", f"servers/{server_id}/")
        return "gone" if answer.status_code == 404 else str(answer.json()["status"])

    def is_at_rest(self, server_id: int, status: str) -> bool:
        """Whether a server has that status, and nothing is done to it any more."""
        if self.status(server_id) != status:
            return False
        operations = self.ask("GET", f"servers/{server_id}/operations/?page_size=1000").json().get("results", [])
        return all(operation["finished_at"] for operation in operations)

    def begin(self, servers: int, until: threading.Event) -> None:
        """Do this and that in a thread of its own: order servers, and then change them until told to end."""
        self._thread = threading.Thread(target=self._live, args=(servers, until))
        self._thread.start()

    def _live(self, servers: int, until: threading.Event) -> None:
        try:
            for number in range(servers):
                self.create(f"c{self._number}-{number}")
            while not until.is_set():
                living = [server for server, wish in self.wishes.items() if wish != "gone"]
                if len(living) < servers:
                    self.create(f"c{self._number}-{len(self.wishes)}")
                    continue
                server = self._chance.choice(living)
                command = self._chance.choices(
                    ("stop", "start", "reboot", "migrate", "delete"), weights=(4, 5, 2, 2, 1)
                )[0]
                if command == "migrate":
                    moves = self.ask("POST", f"operator/servers/{server}/migrate/", {"cold": True})
                    self.moves += moves.status_code == 200
                else:
                    self.command(server, command)
                until.wait(self._chance.random() * 0.5)
        except Exception as error:
            self.error = error

    def join(self) -> None:
        """Wait for its last answer; raises what it met."""
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error
