"""Customers in a storm: they ask for something, ask again when nobody answers, and remember what was said."""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from tests.storm.requests import Answer, Lost

if TYPE_CHECKING:
    from tests.storm.world import World

_PLANS = (3, 4)
_FEW = 3
_AGAIN = ("database_unavailable", "outcome_unknown")
_SHARE = {
    "create": 3,
    "stop": 4,
    "start": 4,
    "reboot": 2,
    "hard_stop": 1,
    "resize": 2,
    "rebuild": 1,
    "snapshot": 1,
    "restore": 1,
    "delete": 2,
    "undelete": 2,
    "rename": 2,
}
_POWER = {"stop": "off", "hard_stop": "off", "start": "on", "reboot": "on", "rebuild": "on", "restore": "on"}


class Wish(msgspec.Struct):
    """What somebody was promised of a server: sets, as nobody knows whether a request without an answer was done."""

    name: str
    power: set[str]
    plan: set[int]
    hostname: set[str | None]
    is_there: set[bool] = msgspec.field(default_factory=lambda: {True})
    events: dict[str, int] = msgspec.field(default_factory=dict)  # at least so many of which action
    power_asked_at: float = 0.0  # when it was last asked for what it shall be: on or off
    since_operation: int = 0  # what was begun since


class Customer:
    """One account."""

    def __init__(self, world: "World", name: str, account_id: int, token: str) -> None:
        self._world = world
        self._chance = world.chance
        self.name = name
        self.account_id = account_id
        self._token = token
        self.wishes: dict[int, Wish] = {}
        self.made: set[str] = set()  # names of servers that were accepted
        self.perhaps: set[str] = set()  # that may have been
        self.snapshots: list[tuple[int, int]] = []  # that were accepted: their ids, and their servers'
        self._numbers = 0
        self.has_enough = False

    async def live(self) -> None:
        """Ask for this and that, until one has enough."""
        while not self.has_enough:
            await asyncio.sleep(self._chance.expovariate(1 / 3))
            (what,) = self._chance.choices(list(_SHARE), list(_SHARE.values()))
            enough = len(self.wishes) >= _FEW and self._chance.random() < 0.7  # servers get more to do
            if not self.wishes or (what == "create" and not enough):
                await self._create()
            elif what != "create":
                await self._change(self._chance.choice(list(self.wishes)[-_FEW:]), what)

    async def _create(self) -> None:
        self._numbers += 1
        name, plan = f"{self.name}-{self._numbers}", self._chance.choice(_PLANS)
        body = {"name": name, "plan_id": plan, "os_id": 1, "location": "us-west"}
        asked_at = self._world.loop.time()
        answer = await self._ask("POST", "/api/v1/servers/", body)
        if answer is None:
            self.perhaps.add(name)
        elif answer.is_accepted:
            self.made.add(name)
            self.wishes[answer.body["id"]] = Wish(name, {"on"}, {plan}, {None}, events={"server.create": 1})
            self.wishes[answer.body["id"]].power_asked_at = asked_at

    async def _change(self, server: int, what: str) -> None:
        wish, path = self.wishes[server], f"/api/v1/servers/{server}/"
        method = "POST"
        body: dict[str, Any] | None = None
        plan, hostname = self._chance.choice(_PLANS), f"host-{self._chance.randint(1, 9)}.example"
        address = f"{path}{what}/"
        if what == "hard_stop":
            address, body = f"{path}power/", {"action": what}
        elif what == "resize":
            body = {"plan_id": plan}
        elif what == "rebuild":
            body = {"os_id": 1}
        elif what == "restore":
            own = [copy for copy, of in self.snapshots if of == server]
            if not own:
                return
            address = f"/api/v1/snapshots/{self._chance.choice(own)}/restore/"
        elif what == "delete":
            method, address = "DELETE", path
        elif what == "rename":
            method, address, body = "PATCH", path, {"hostname": hostname}
        asked_at = self._world.loop.time()
        answer = await self._ask(method, address, {} if body is None and method == "POST" else body)
        if answer is not None and not answer.is_accepted:
            return
        if answer is not None and what == "snapshot":
            self.snapshots.append((answer.body["id"], server))
        if what in _POWER or what == "undelete":
            wish.power_asked_at = asked_at
            wish.since_operation = 0 if answer is None else answer.operation_id
        self._remember(wish, what, plan, hostname, is_sure=answer is not None)

    def _remember(self, wish: Wish, what: str, plan: int, hostname: str, *, is_sure: bool) -> None:
        new: dict[str, set[Any]] = {}
        if what in _POWER:
            new["power"] = {_POWER[what]}
        elif what == "delete":
            new["is_there"] = {False}
        elif what == "undelete":
            new["is_there"] = {True}
        elif what == "resize":
            new["plan"] = {plan}
        elif what == "rename":
            new["hostname"] = {hostname}
        for field, value in new.items():
            setattr(wish, field, value if is_sure else getattr(wish, field) | value)
        if is_sure and what != "snapshot":
            action = {"hard_stop": "server.hard_stop", "rename": "server.change"}.get(what, f"server.{what}")
            wish.events[action] = wish.events.get(action, 0) + 1

    async def _ask(self, method: str, path: str, body: Any) -> Answer | None:
        """Ask one of the APIs, and others while there is no answer; None where nobody knows what came of it.

        A POST is sent again with its key, until it is known; what has no key is not sent again once it may be done.
        """
        key = self._world.ids.uuid() if method == "POST" else None
        for _ in range(60):
            running = self._world.living("api")
            answer = None
            if running:
                machine = self._chance.choice(running)
                try:
                    answer = await machine.ask(method, path, self._token, body, key)
                except Lost:
                    self._world.tell(self.name, f"{method} {path} got no answer of {machine.name}")
                    if key is None:
                        return None
            if answer is not None:
                code = "" if answer.is_accepted else f" {msgspec.json.encode(answer.body).decode()[:200]}"
                self._world.tell(self.name, f"{method} {path} {body or ''}: {answer.status}{code}")
                if answer.code == "outcome_unknown" and key is None:
                    return None
                if answer.code not in _AGAIN and not self._is_under_way(answer):
                    self._judge(answer)
                    return answer
            await asyncio.sleep(self._chance.expovariate(1 / 2))
        return None

    def _is_under_way(self, answer: Answer) -> bool:
        """Whether an earlier request with the same key is not answered yet."""
        return answer.status == 409

    def _judge(self, answer: Answer) -> None:
        if answer.status >= 500 and answer.status != 503:
            self._world.findings.add(f"{self.name} was answered {answer.status}: {answer.body}")


class Operator(Customer):
    """Who moves servers between hosts, whosever they are."""

    async def live(self) -> None:
        """Move this and that, until one has enough."""
        while not self.has_enough:
            await asyncio.sleep(self._chance.expovariate(1 / 6))
            servers = [server for customer in self._world.customers for server in list(customer.wishes)[-_FEW:]]
            if servers:
                path = f"/api/v1/operator/servers/{self._chance.choice(servers)}/migrate/"
                await self._ask("POST", path, {"cold": self._chance.random() < 0.3})
