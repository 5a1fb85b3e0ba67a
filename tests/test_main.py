"""The whole process, on the simulator: start, end, start again."""

import contextlib
import itertools
import json
import random
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_access import PUBLIC_KEY
from tests.balancer import Balancer, Load
from tests.running import PROGRAM, Vpsd, run, until
from vpsd.core import folder
from vpsd.settings import Settings


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that does not run yet."""
    made = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    yield made
    made.discard()


def test_the_next_start_finds_the_servers_and_the_token(vpsd: Vpsd) -> None:
    vpsd.start()
    until(lambda: "Your first server" in vpsd.said(), "the lines to paste")
    assert vpsd.said().count(vpsd.token) == 1
    server = vpsd.create("web")["id"]
    detail = vpsd.until_status(server, "active")
    history = vpsd.operations(server)
    assert vpsd.interrupt() == 0
    assert "stopping; servers go on running" in vpsd.said()
    database = vpsd.data / "vpsd.sqlite"
    assert not folder.exposed(Settings(data_dir=vpsd.data))
    vpsd.data.chmod(0o755)  # as an earlier vpsd had it
    database.chmod(0o644)
    (problem,) = vpsd.run_json("doctor")["problems"]
    assert problem.startswith(f"other users can read or change {database}, {vpsd.data}: ")
    vpsd.start()
    assert f"other users could read or change {database}, {vpsd.data}: not any more\n" in vpsd.said()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (vpsd.data, database)] == [0o711, 0o600]
    assert vpsd.token not in vpsd.said()
    assert vpsd.get(f"servers/{server}/") == detail
    assert vpsd.operations(server) == history
    assert vpsd.run_json("check") == []
    assert vpsd.terminate() == 0


def test_it_ends_in_time_whenever_it_is_told_to_while_servers_are_made(vpsd: Vpsd) -> None:
    chance, servers = random.Random(7), []
    for number in range(2):
        vpsd.start()
        servers += [vpsd.create(f"web-{number}-{count}")["id"] for count in range(6)]
        time.sleep(chance.uniform(0, 0.5))  # any moment is as good as another
        begun = time.monotonic()
        assert vpsd.terminate() == 0
        assert time.monotonic() - begun < 15
        assert "without" not in vpsd.said()
    vpsd.start()
    for server in servers:
        vpsd.until_status(server, "active")
    assert vpsd.run_json("check") == []


def test_a_request_whose_process_died_is_carried_out_by_the_next_start(vpsd: Vpsd) -> None:
    def order() -> httpx.Response:
        headers = {"Authorization": f"Bearer {vpsd.token}", "Idempotency-Key": "order"}
        body = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"}
        return httpx.post(f"http://{vpsd.listen}/api/v1/servers/", headers=headers, json=body)

    vpsd.start(well=False)
    assert order().json()["id"] == 1
    vpsd.kill()
    with contextlib.closing(sqlite3.connect(vpsd.data / "vpsd.sqlite")) as database:  # as if it had died meanwhile
        database.execute("UPDATE idempotency_keys SET answer = NULL, lease_until_ms = ?", [(time.time() + 4) * 1000])
        database.execute("UPDATE accounts SET exhausted_at_ms = ?", [(time.time() + 86_400) * 1000])
        database.commit()
    vpsd.start(well=False)
    assert order().json()["id"] == 2
    ((exhausted_ms,),) = vpsd.rows("SELECT exhausted_at_ms FROM accounts")  # by a clock that was ahead: set right
    assert exhausted_ms is None or exhausted_ms <= time.time() * 1000


def test_a_vpsd_that_stops_resets_nobody(vpsd: Vpsd) -> None:
    """Each client asks again and again on one connection, until it is told that this was the last answer."""
    vpsd.environment |= {"VPSD_RATE_LIMIT": "0", "VPSD_ADDRESS_RATE_LIMIT": "0"}
    vpsd.start()
    request = f"GET /api/v1/servers/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {vpsd.token}\r\n\r\n".encode()
    host, port = vpsd.listen.split(":")
    clients = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
    asked = threading.Barrier(len(clients) + 1)

    def ask_until_the_end(client: socket.socket) -> bytes:
        with client, client.makefile("rb") as answers:
            for number in itertools.count():
                client.sendall(request)
                head = b"".join(iter(answers.readline, b"\r\n")).lower()
                length = head.split(b"content-length: ")[1].split(b"\r\n")[0]
                assert len(answers.read(int(length))) == int(length)
                if number == 1:
                    asked.wait()
                if b"connection: close" in head:
                    return answers.read()
        raise AssertionError

    with ThreadPoolExecutor(len(clients)) as pool:
        ends = [pool.submit(ask_until_the_end, client) for client in clients]
        asked.wait()
        assert vpsd.terminate() == 0
        assert [end.result() for end in ends] == [b""] * len(clients)


def test_a_second_vpsd_on_the_same_folder_is_refused(vpsd: Vpsd) -> None:
    vpsd.start()
    done = run("up", environment={**vpsd.environment, "VPSD_LISTEN": "127.0.0.1:0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vpsd: another vpsd works in {vpsd.data}; stop it, or set VPSD_DATA_DIR to another folder\n"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_api_and_worker_may_be_two_processes_on_postgresql(database_url: str) -> None:
    api = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05, database_url=database_url)
    try:
        api.start(well=False, part="api")
        assert api.health().json()["hypervisor"]["status"] == "connecting"
        server = api.create("web")["id"]
        worker = subprocess.Popen([PROGRAM, "worker"], env=api.environment)
        try:
            api.until_status(server, "active")
        finally:
            worker.send_signal(signal.SIGINT)
            assert worker.wait(60) == 0
    finally:
        api.discard()


@pytest.mark.parametrize("part", ["api", "worker"])
def test_several_processes_need_a_database_that_they_can_share(vpsd: Vpsd, part: str) -> None:
    done = run(part, environment=vpsd.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vpsd: vpsd {part}: several processes need PostgreSQL; set VPSD_DATABASE_URL")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_processes_are_restarted_one_after_the_other_and_no_request_fails(database_url: str) -> None:
    settings: dict[str, Any] = {"hypervisor": "simulator", "database_url": database_url, "rate_limit": 0}
    first = Vpsd(**settings, address_rate_limit=0, drain_seconds=1)
    second = Vpsd(beside=first, **settings, address_rate_limit=0, drain_seconds=1)
    worker = subprocess.Popen([PROGRAM, "worker"], env=first.environment)
    balancer = Balancer([first.listen, second.listen])
    try:
        first.start(well=False, part="api")
        second.start(well=False, part="api")
        until(lambda: len(balancer.ready) == 2, "both to be ready")
        load = Load(balancer, first.token)
        for one in (first, second):
            load.until_served(50)
            assert one.terminate() == 0
            one.start(well=False, part="api")
            until(lambda: len(balancer.ready) == 2, "both to be ready")
        load.until_served(50)
        assert load.end() == []
    finally:
        balancer.close()
        for one in (second, first):
            one.discard()
        worker.send_signal(signal.SIGINT)
        assert worker.wait(60) == 0


def test_an_address_that_is_taken_is_said_by_the_settings_name(vpsd: Vpsd) -> None:
    host, port = vpsd.listen.split(":")
    with socket.create_server((host, int(port))):
        done = run("up", environment=vpsd.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vpsd: VPSD_LISTEN={vpsd.listen} cannot be used: Address already in use\n"


def test_a_host_that_does_not_answer_is_said_and_waited_for(vpsd: Vpsd) -> None:
    socket_path = vpsd.data / "no-such-socket"
    vpsd.environment |= {
        "VPSD_HYPERVISOR": "libvirt",
        "VPSD_LIBVIRT_URI": f"qemu+unix:///system?socket={socket_path}",
    }
    vpsd.start(well=False)
    until(lambda: "hypervisor: " in vpsd.said(), "word of the host")
    health = vpsd.health()
    assert health.status_code == 503
    assert health.json()["status"] == "degraded"
    assert str(socket_path) in vpsd.said()
    refused = vpsd.ask("POST", "servers/", {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
    assert vpsd.interrupt() == 0


@pytest.fixture
def talkative(tmp_path: Path) -> Iterator[Vpsd]:
    """A vpsd, not yet running, that logs all it can to `errors` in the test's folder; what it says is kept apart."""
    script = tmp_path / "vpsd"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(PROGRAM))} "$@" 2>>{shlex.quote(str(tmp_path / "errors"))}\n')
    script.chmod(0o755)
    made = Vpsd(
        program=script, hypervisor="simulator", simulator_boot_seconds=0.05, log_format="json", log_level="debug"
    )
    yield made
    made.discard()


def test_no_secret_is_in_anything_that_is_logged(talkative: Vpsd, tmp_path: Path) -> None:
    talkative.start()
    said = talkative.said()
    assert said.count(talkative.token) >= 1  # at the first start, on purpose, and not in the log
    http = httpx.Client(
        base_url=f"http://{talkative.listen}/api/v1/", headers={"Authorization": f"Bearer {talkative.token}"}
    )
    order = {"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west"}
    secrets, answers = [talkative.token], []
    for number in range(2):
        for _ in range(2):  # the second is answered from what is kept of the first
            answer = http.post("servers/", json=order, headers={"Idempotency-Key": f"order-{number}"})
            assert answer.status_code == 201
        answers.append(answer.text)
        secrets.append(answer.json()["password"])
        body = {"name": f"token-{number}", "permissions": ["servers:read"]}
        made = http.post("account/tokens/", json=body, headers={"Idempotency-Key": f"token-{number}"})
        answers.append(made.text)
        secrets.append(made.json()["token"])
    http.post("ssh-keys/", json={"name": "laptop", "public_key": PUBLIC_KEY})
    http.post("servers/", json={**order, "password": "my-own-password"})  # there is no such field
    secrets += ["vps_mistyped", "vps_in-the-query", "my-own-password", "basic-secret"]
    for header in ("Bearer vps_mistyped", "Basic basic-secret", "basic-secret", "Bearer vps_mistyped\x7f"):
        refused = http.get("servers/", headers={"Authorization": header})
        assert refused.status_code == (400 if "\x7f" in header else 401)  # that one is no HTTP
    for path in ("servers/", "nowhere/", "servers/?dry_run=maybe&", "account/usage/"):
        http.request("POST" if "dry" in path else "GET", f"{path}?token=vps_in-the-query", json=order)
    assert http.post("servers/1/stop/", headers={"Idempotency-Key": "stop"}).status_code in (200, 400)

    def at_rest() -> bool:
        return {server["status"] for server in talkative.get("servers/")["results"]} <= {"active", "stopped"}

    until(at_rest, "the servers to come to rest")
    assert http.delete("account/tokens/2/").status_code == 204
    assert http.delete("servers/2/").status_code == 204
    shown = talkative.run("token", "add", "default", "--json")  # a command logs as much, to the same place
    secrets.append(json.loads(shown.stdout)["token"])
    talkative.run("credit", "add", "default", "5", "--json")
    assert talkative.interrupt() == 0

    secrets += [row[0] for row in talkative.rows("SELECT hash FROM tokens")]
    secrets += [row[0] for row in talkative.rows("SELECT root_password_hash FROM servers")]
    assert len(secrets) == len(set(secrets)) == 1 + 4 + 4 + 1 + 4 + 2
    logged = (tmp_path / "errors").read_text()
    lines = [json.loads(line) for line in logged.splitlines()]
    asked = [line for line in lines if line["logger"] == "vpsd.access"]
    assert len(asked) > 20
    assert all(line["request_id"] and line["status"] for line in asked)
    assert {line["status"] for line in asked} >= {200, 201, 204, 400, 401, 404}
    assert "debug" in {line["level"] for line in lines}
    for secret in [*secrets, *answers]:
        assert secret.removeprefix("vps_") not in logged
        assert secret == talkative.token or secret not in talkative.said()
    assert "?" not in "".join(line["path"] for line in asked)
