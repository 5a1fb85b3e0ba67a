"""The whole process, on the simulator: start, end, start again."""

import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.running import PROGRAM, Vpsd, run, until


@pytest.fixture
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that does not run yet."""
    made = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    yield made
    made.discard()


def test_the_next_start_finds_the_servers_and_the_token(vpsd: Vpsd) -> None:
    vpsd.start()
    assert vpsd.token in vpsd.said()
    server = vpsd.create("web")["id"]
    detail = vpsd.until_status(server, "active")
    history = vpsd.operations(server)
    assert vpsd.interrupt() == 0
    assert "stopping; servers go on running" in vpsd.said()
    vpsd.start()
    assert vpsd.token not in vpsd.said()
    assert vpsd.get(f"servers/{server}/") == detail
    assert vpsd.operations(server) == history
    assert vpsd.run_json("check") == []
    assert vpsd.terminate() == 0


def test_a_second_vpsd_on_the_same_folder_is_refused(vpsd: Vpsd) -> None:
    vpsd.start()
    done = run("up", environment={**vpsd.environment, "VPSD_LISTEN": "127.0.0.1:0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vpsd: another vpsd works in {vpsd.data}; stop it, or set VPSD_DATA_DIR to another folder\n"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_api_and_worker_may_be_two_processes_on_postgresql(database_url: str) -> None:
    api = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05, database_url=database_url, role="api")
    try:
        api.start(well=False)
        assert api.health().json()["hypervisor"]["status"] == "elsewhere"
        server = api.create("web")["id"]
        worker = subprocess.Popen([PROGRAM, "up"], env={**api.environment, "VPSD_ROLE": "worker"})
        try:
            api.until_status(server, "active")
        finally:
            worker.send_signal(signal.SIGINT)
            assert worker.wait(60) == 0
    finally:
        api.discard()


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
    assert vpsd.create("web")["status"] == "provisioning"
    assert vpsd.interrupt() == 0
