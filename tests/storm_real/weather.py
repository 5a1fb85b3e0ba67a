"""What befalls the processes, one blow after the other, and how long it takes until all is well again."""

import random
import signal
import threading
import time
from collections.abc import Callable

from tests import postgres
from tests.running import until
from tests.storm_real.cloud import ManyProcesses, say
from tests.storm_real.customers import Customer

_RECOVERY_SECONDS = 180.0


class Weather:
    """Draws blows from a seed."""

    def __init__(self, cloud: ManyProcesses, canary: Customer, seed: int) -> None:
        self._cloud, self._canary = cloud, canary
        self._chance = random.Random(f"{seed} weather")
        self._begun = time.monotonic()
        self._servant = canary.create("canary")
        self.recoveries: list[tuple[str, float]] = []
        self._wait = threading.Event()

    def blows(self) -> list[Callable[[], str]]:
        """One of each kind, in an order of the seed's."""
        found = [self.kill_worker, self.kill_api, self.restart_database, self.kill_libvirtd, self.cut_host, self.stall]
        self._chance.shuffle(found)
        return found

    def strike(self, blow: Callable[[], str]) -> None:
        """One blow, and the time from its end until everything answers and a command is carried out."""
        what = blow()
        ended = time.monotonic()
        until(self._cloud.is_well, f"all hosts after: {what}", _RECOVERY_SECONDS)
        self._have_canary_sing()
        seconds = time.monotonic() - ended
        self.recoveries.append((what, seconds))
        self._tell(f"{what}; well again after {seconds:.1f} s")

    def _have_canary_sing(self) -> None:
        assert self._servant is not None
        wish = "stop" if self._canary.wishes[self._servant] == "active" else "start"
        until(lambda: self._canary.command(self._servant or 0, wish), "a command to be taken", _RECOVERY_SECONDS)
        wanted = self._canary.wishes[self._servant]
        until(lambda: self._canary.status(self._servant or 0) == wanted, "a command", _RECOVERY_SECONDS)

    def _tell(self, text: str) -> None:
        say(f"{time.monotonic() - self._begun:7.1f} s  {text}")

    def kill_worker(self) -> str:
        """kill -9, and a supervisor that starts it again."""
        worker = self._chance.choice(self._cloud.workers)
        worker.send(signal.SIGKILL)
        self._wait.wait(self._chance.random() * 5)
        worker.start()
        return f"{worker.name} was killed"

    def kill_api(self) -> str:
        """The same."""
        number = self._chance.randrange(len(self._cloud.apis))
        self._cloud.apis[number].kill()
        self._wait.wait(self._chance.random() * 3)
        self._cloud.apis[number].start(well=False, part="api")
        return f"api-{number + 1} was killed"

    def restart_database(self) -> str:
        """As after a crash: nothing is written down before it ends."""
        postgres.restart(self._cloud.url)
        return "PostgreSQL was restarted"

    def kill_libvirtd(self) -> str:
        """Its guests run on."""
        host = self._chance.choice(self._cloud.lab.hosts)
        host.kill_daemon()
        self._wait.wait(self._chance.random() * 5)
        host.start()
        return f"libvirtd of {host.address} was killed"

    def cut_host(self) -> str:
        """Nobody reaches it for a time, and it nobody."""
        host = self._chance.choice(self._cloud.lab.hosts)
        host.cut()
        self._wait.wait(15 + self._chance.random() * 15)
        host.join()
        return f"host {host.address} was cut off"

    def stall(self) -> str:
        """A worker stands still for longer than its leases last, and comes back."""
        worker = self._chance.choice(self._cloud.workers)
        worker.send(signal.SIGSTOP)
        self._wait.wait(18 + self._chance.random() * 5)
        worker.send(signal.SIGCONT)
        return f"{worker.name} stood still"
