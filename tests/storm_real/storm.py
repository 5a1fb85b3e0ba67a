"""A storm, and what has to be true after it."""

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import libvirt
import msgspec

from tests.running import until
from tests.storm_real.cloud import ManyProcesses, Size, many_processes, say
from tests.storm_real.customers import Customer
from tests.storm_real.weather import Weather

_REST_SECONDS = 900.0


class Outcome(msgspec.Struct, frozen=True):
    """What was found, and how long recoveries took, in seconds."""

    found: list[str]
    recoveries: list[tuple[str, float]]
    servers: int
    moves: int

    def __str__(self) -> str:
        seconds = [each for _, each in self.recoveries]
        return (
            f"{self.servers} servers, {self.moves} moves, {len(seconds)} blows; recovery "
            f"{statistics.median(seconds):.1f} s (p50), {max(seconds):.1f} s (max); found: "
            f"{'; '.join(self.found) or 'nothing'}"
        )


def storm(folder: Path, seed: int, size: Size) -> Outcome:
    """One storm from a seed: what is asked for and what strikes are its, when they meet is the machine's."""
    with many_processes(folder, size) as cloud:
        say(f"seed {seed}: {size}")
        made = cloud.run_json("token", "add", "default", "--name", "operator", "--permission", "operator:*")
        addresses = [api.listen for api in cloud.apis]
        *customers, canary = (
            Customer(number, addresses, cloud.apis[0].token, made["token"], seed)
            for number in range(size.customers + 1)
        )
        over = threading.Event()
        weather = Weather(cloud, canary, seed)
        try:
            for customer in customers:
                customer.begin(size.servers // size.customers, over)
            end = time.monotonic() + size.seconds
            while True:
                for blow in weather.blows():
                    weather.strike(blow)
                if time.monotonic() > end:
                    break
        finally:
            over.set()
            for customer in customers:
                customer.join()
        found = _look(cloud, [*customers, canary])
        servers = sum(len(customer.wishes) for customer in [*customers, canary])
        outcome = Outcome(found, weather.recoveries, servers, sum(customer.moves for customer in customers))
        say(str(outcome))
        return outcome


def _look(cloud: ManyProcesses, customers: Sequence[Customer]) -> list[str]:
    """Everything that is not as it should be once all has come to rest."""
    wishes = {server: wish for customer in customers for server, wish in customer.wishes.items()}
    say(f"the storm is over; {dict(Counter(wishes.values()))} are wished for")
    waiting = dict(wishes)

    def all_come_true() -> bool:
        # At rest, too: a server that is moved while it is off is active all the time.
        for server in [one for one, wish in waiting.items() if customers[0].is_at_rest(one, wish)]:
            del waiting[server]
        return not waiting

    with contextlib.suppress(AssertionError):
        until(all_come_true, "every wish", _REST_SECONDS)
    found = [f"server {server} is {customers[0].status(server)}, not {wish}" for server, wish in waiting.items()]
    findings: list[dict[str, str]] = []

    def nothing_is_wrong() -> bool:
        findings[:] = cloud.run_json("check")
        return not findings

    with contextlib.suppress(AssertionError):
        until(nothing_is_wrong, "nothing to be left", 120)
    found += [f"vpsd check: {one['kind']} {one['name']}: {one['text']}" for one in findings]
    for book in cloud.run_json("billing", "verify"):
        if book["problems"] or float(book["difference"]):
            found.append(f"books of {book['account']}: {book}")
    return found + _look_at_hosts(cloud, wishes)


def _look_at_hosts(cloud: ManyProcesses, wishes: dict[int, str]) -> list[str]:
    """Each living server has one guest at most over all real hosts, each dead one none."""
    places: dict[int, list[str]] = {}
    running: dict[int, int] = {}
    for host in cloud.lab.hosts:
        connection = libvirt.open(host.uri)
        try:
            for domain in connection.listAllDomains():
                server = int(domain.name().rpartition("-")[2])
                places.setdefault(server, []).append(host.address)
                running[server] = running.get(server, 0) + domain.isActive()
        finally:
            connection.close()
    found = [f"server {server} has guests at {where}" for server, where in places.items() if len(where) > 1]
    for server, count in running.items():
        wish = wishes.get(server, "gone")
        if count != (1 if wish == "active" else 0):
            found.append(f"server {server} is wished to be {wish}, and {count} guests of it run")
    gone = [server for server in places if wishes.get(server, "gone") == "gone"]
    found += [f"server {server} is gone, and has a guest" for server in gone]
    say(f"{len(places)} guests on {len(cloud.lab.hosts)} libvirtds, {sum(running.values())} run")
    return found
