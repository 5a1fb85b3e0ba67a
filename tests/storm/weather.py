"""What goes wrong in a storm."""

import asyncio
from typing import TYPE_CHECKING

from tests.storm.machine import Doom, Machine
from vpsd.hypervisor.protocol import PowerState

if TYPE_CHECKING:
    from tests.storm.world import World

_SHARE = {  # how often what happens
    "kill": 10,
    "stop": 12,
    "cut": 4,
    "lose_database": 2,
    "break_commits": 3,
    "lose_events": 3,
    "slow_down": 2,
    "set_clock": 1,
    "meddle": 5,
}
_STOPPED_SECONDS = (1, 5, 13, 16, 18, 20, 25, 30, 40)  # most of them longer than a lease


class Weather:
    """Causes trouble now and then, and puts an end to it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = world.chance

    async def rage(self) -> None:
        """Cause trouble until cancelled."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / 2))
            (what,) = self._chance.choices(list(_SHARE), list(_SHARE.values()))
            getattr(self, f"_{what}")()

    def calm(self) -> None:
        """Everything is back, and nothing more is meant to happen."""
        world = self._world
        world.is_database_away, world.commit_faults, world.event_faults, world.slowness = False, 0.0, 0.0, 1.0
        world.cut.clear()
        for machine in world.alive:
            machine.doom = None
            if machine.is_stopped:
                machine._go_on()
        self._keep_staffed("api", 1)
        self._keep_staffed("worker", 2)

    def _after(self, seconds: float, what: "object") -> None:
        self._world.loop.call_later(round(seconds, 3), what, context=self._world.context)  # type: ignore[arg-type]

    def _victim(self) -> Machine | None:
        running = [machine for machine in self._world.alive if not machine.is_stopped and machine.doom is None]
        weights = [3 if machine.name.startswith("worker") else 1 for machine in running]
        return self._chance.choices(running, weights)[0] if running else None

    def _kill(self) -> None:
        victim = self._victim()
        if victim is None:
            return

        def strike(at: str) -> None:
            self._world.tell(victim.name, f"is killed at {at}")
            victim.kill()
            kind = victim.name.partition("-")[0]
            self._after(self._chance.choice((0.1, 1, 5, 20)), lambda: self._world.start(kind))

        victim.doom = Doom(self._chance.randint(1, 25), strike)

    def _stop(self) -> None:
        victim = self._victim()
        if victim is None:
            return

        def strike(at: str) -> None:
            seconds = self._chance.choice(_STOPPED_SECONDS)
            self._world.tell(victim.name, f"is stopped at {at} for {seconds} s")
            victim.stop(seconds)

        # Mostly in the middle of a call: what comes late then is on its way already.
        if self._chance.random() < 0.7:
            victim.doom = Doom(self._chance.randint(1, 8), strike, at_commit=False, at_rest=False)
        else:
            victim.doom = Doom(self._chance.randint(1, 25), strike, at_commit=False)

    def _cut(self) -> None:
        host, world = self._chance.choice(list(world_hosts(self._world))), self._world
        if host in world.cut:
            return
        seconds = self._chance.choice((1, 5, 20, 60))
        world.tell(host, f"is cut off for {seconds} s")
        world.cut.add(host)
        self._after(seconds, lambda: self._bring_back(host))

    def _bring_back(self, host: str) -> None:
        if host in self._world.cut:
            self._world.tell(host, "is back")
            self._world.cut.discard(host)

    def _lose_database(self) -> None:
        world, seconds = self._world, self._chance.choice((0.5, 3, 14))
        world.tell("database", f"is away for {seconds} s")
        world.is_database_away = True

        def end() -> None:
            world.is_database_away = False

        self._after(seconds, end)

    def _break_commits(self) -> None:
        self._for_a_while("commit_faults", self._chance.choice((0.05, 0.3)), 0.0)

    def _lose_events(self) -> None:
        self._for_a_while("event_faults", 0.5, 0.0)

    def _slow_down(self) -> None:
        self._for_a_while("slowness", self._chance.choice((5.0, 50.0)), 1.0)

    def _for_a_while(self, name: str, value: float, usual: float) -> None:
        seconds = self._chance.choice((2, 10, 20))
        self._world.tell("weather", f"{name} {value} for {seconds} s")
        setattr(self._world, name, value)
        self._after(seconds, lambda: setattr(self._world, name, usual))

    def _set_clock(self) -> None:
        # Not by hours forward: a worker that starts after that cannot tell it from hours in which vpsd was off, and
        # gives up what had its time then.
        seconds = self._chance.choice((-7200, -40, -5, 5, 40, 200))
        self._world.tell("clock", f"is set by {seconds} s")
        self._world.clock.ahead_ms += seconds * 1000
        self._world.clock_set_at = self._world.loop.time()

    def _meddle(self) -> None:
        """A guest does something by itself, or somebody on the host does."""
        name = self._chance.choice(list(self._world.hosts))
        host = self._world.hosts[name]
        guests = sorted(host._store.current().guests.items())
        if not guests:
            return
        guest, state = self._chance.choice(guests)
        what = self._chance.choice(("OFF", "CRASHED", "reboot", "vanish"))
        self._world.tell(name, f"{guest} meets {what}")
        self._world.findings.meddled(guest)
        if what == "vanish":
            host.vanishes(guest)
        elif state.power is not PowerState.RUNNING:
            return
        elif what == "reboot":
            host.reboots(guest)
        else:
            host.happens(guest, PowerState[what])

    def _keep_staffed(self, kind: str, least: int) -> None:
        while len(self._world.living(kind)) < least:
            self._world.start(kind)


def world_hosts(world: "World") -> list[str]:
    """The names of the hosts."""
    return sorted(world.hosts)
