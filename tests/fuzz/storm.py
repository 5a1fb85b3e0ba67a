"""A storm on a simulated cloud: customers, workers that die or lose their lease, clocks that jump; from one seed."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.cloud import TINY, Cloud
from tests.killed import Killed
from vpsd.audit import Audit
from vpsd.billing.verify import verify
from vpsd.lifecycle import AT_REST
from vpsd.operations.service import LEASE_SECONDS
from vpsd.servers import queries as servers

_HOUR = 3600
_SHARE = {  # how often what happens
    "order": 10,
    "work": 8,
    "die": 6,
    "lose_lease": 4,
    "jump": 2,
    "pass_time": 4,
    "look": 3,
}


class Storm:
    """Things that happen to a cloud; `said` tells them in order."""

    def __init__(self, cloud: Cloud, seed: int) -> None:
        self.cloud = cloud
        self.said: list[str] = []
        self._random = random.Random(seed)
        self._servers = self._copies = 0  # ids up to these were given
        self._ahead_seconds = 0.0  # of the clock, compared with the time that has passed

    async def rage(self, events: int) -> None:
        """Have so many things happen, to two servers at first."""
        for name in ("web-1", "web-2"):
            await self.cloud.create(name)
            self._servers += 1
        for name in self._random.choices(list(_SHARE), list(_SHARE.values()), k=events):
            self.said.append(name)
            happen: Callable[[], Awaitable[None]] = getattr(self, f"_{name}")
            await happen()

    async def calm_down(self) -> None:
        """The leases of the dead run out, and everything comes to rest, whether or not the clock is set right."""
        if self._random.random() < 0.5:
            self._set_clock(-self._ahead_seconds)
        for _ in range(4):  # a recovery that failed is tried again within the hour
            self.cloud.clock.advance(_HOUR)
            await self.cloud.settle()
        await self.cloud.biller().bill()

    async def audit(self) -> list[str]:
        """What is not as it should be."""
        findings = [f"{found.kind} {found.name}: {found.text}" for found in await Audit(self.cloud.runtime).run()]
        async with self.cloud.reading() as ctx:
            books = await verify(ctx, servers.lives)
            rows = await servers.present(ctx)
        findings += [f"{row.name} is {row.status}" for row in rows if row.status not in AT_REST]
        findings += [f"{book.account}: {book.difference_micros} {book.problems}" for book in books if not _right(book)]
        return findings

    # What happens.

    async def _order(self) -> None:
        """A customer wants something; whether it is possible now is not for the storm to know."""
        server, copy = self._random.randint(1, self._servers + 1), self._random.randint(1, self._copies + 1)
        path = f"/api/v1/servers/{server}/"
        commands = ("start", "stop", "reboot", "undelete", "backup", "snapshot")
        method, path, body = self._random.choice(
            (
                ("POST", "/api/v1/servers/", {"name": f"web-{server}", **TINY}),
                *(("POST", f"{path}{command}/", {}) for command in commands),
                ("POST", f"{path}power/", {"action": "hard_stop"}),
                ("POST", f"{path}rebuild/", {"os_id": 1}),
                ("POST", f"{path}resize/", {"plan_id": self._random.choice((3, 4))}),
                ("POST", f"/api/v1/backups/{copy}/restore/", {}),
                ("PATCH", path, {"hostname": f"host-{copy}.example"}),
                ("DELETE", path, {}),
            )
        )
        answer = await self.cloud.ask(method, path, json=body)
        self.said[-1] += f" {method} {path}: {answer.status_code}"
        assert answer.status_code < 500, answer.text
        if answer.status_code == 201:
            self._servers += "plan" in answer.json()
            self._copies += "consistent" in answer.json()

    async def _work(self) -> None:
        await self.cloud.runner(self._random.choice(("first", "second"))).run_once()

    async def _die(self) -> None:
        """A worker is killed at some call to the host or the target."""
        await self._work_until("first", self._be_killed)

    async def _lose_lease(self) -> None:
        """A worker is stopped in a call for longer than its lease; another one takes over, and then it goes on."""
        await self._work_until("first", self._be_overtaken)

    async def _be_killed(self) -> None:
        raise Killed

    async def _be_overtaken(self) -> None:
        self.cloud.clock.advance(LEASE_SECONDS + 1)
        await self._work_until("second", self._be_killed)

    async def _work_until(self, owner: str, meet: Callable[[], Awaitable[None]]) -> None:
        """A worker works until, at one of the next calls, something happens to it; it may be done before."""
        left = self._random.randint(1, 8)
        hypervisor, target = self.cloud.hypervisor, self.cloud.target

        async def call(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.said[-1] += f" at {name}"
                let_be()
                await meet()

        def let_be() -> None:
            hypervisor.before_call = hypervisor.after_call = target.before_call = None

        setattr(hypervisor, self._random.choice(("before_call", "after_call")), call)
        target.before_call = call
        with suppress(Killed):
            await self.cloud.runner(owner).run_once()
        let_be()

    async def _jump(self) -> None:
        """Somebody sets the clock, or a laptop has slept."""
        self._set_clock(self._random.choice((-2 * _HOUR, -_HOUR, -40, -5, 5, 40, _HOUR, 2 * _HOUR)))

    def _set_clock(self, seconds: float) -> None:
        self._ahead_seconds += seconds
        self.cloud.clock.jump(seconds)

    async def _pass_time(self) -> None:
        self.cloud.clock.advance(self._random.choice((1, LEASE_SECONDS + 1, 60, 600)))

    async def _look(self) -> None:
        """What a worker does beside: it looks at the host, bills, plans backups, counts."""
        cloud = self.cloud
        await self._random.choice(
            (
                cloud.reconciler().reconcile,
                cloud.biller().bill,
                cloud.backup_scheduler().schedule,
            )
        )()


def _right(book: Any) -> bool:
    return not book.difference_micros and not book.problems
