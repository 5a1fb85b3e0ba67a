"""What the first start prints, pasted into a shell, gives a server as ordered."""

import contextlib
import http.server
import re
import stat
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.guests.login import Login
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest


def test_the_first_start_shows_the_token_and_keeps_it_to_itself(vpsd: Vpsd, first_words: str) -> None:
    file = vpsd.data / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"token (also in {file}; it is not shown again): {vpsd.token}\n" in first_words
    assert first_words.count(vpsd.token) == 1


def test_the_printed_lines_make_a_server_and_log_in_to_it(vpsd: Vpsd, first_words: str, first: Any) -> None:
    detail = vpsd.until_status(first["id"], "active")
    (printed,) = re.findall(r"^ +(ssh .*)$", first_words, re.MULTILINE)
    assert printed == detail["ssh"]
    login = Login(printed, password=first["password"])
    assert login.run("hostname") == first["name"]
    assert login.run("nproc") == str(detail["plan"]["vcpus"])
    assert 0.8 < memory_mb(login) / detail["plan"]["memory"] <= 1
    until(lambda: root_size_mb(login) > 0.95 * 1024 * detail["plan"]["storage"], "the file system to fill the disk")


def memory_mb(login: Login) -> int:
    """The memory that the guest's kernel counts."""
    return int(login.run("grep MemTotal /proc/meminfo").split()[1]) // 1024


def root_size_mb(login: Login) -> int:
    """The size of the guest's root file system."""
    return int(login.run("df -Pm /").splitlines()[-1].split()[1])


def test_a_guest_reaches_the_outside(first_login: Login) -> None:
    with serving(b"hello, guest") as port:
        assert first_login.run(f"wget -qO- http://10.0.2.2:{port}/") == "hello, guest"


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[int]:
    """Serve that on a port of the host's own loopback address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_server_uses_is_measured(vpsd: Vpsd, first: Any, first_login: Login) -> None:
    def measured() -> Any:
        usage = vpsd.get(f"servers/{first['id']}/")["resource_usage"]
        return usage if None not in usage.values() else None

    usage = until(measured, "all figures")
    assert 0 <= usage["cpu_percent"] <= 100
    assert 0 < usage["memory_used"] < first["plan"]["memory"]
    assert 0 < usage["disk_used"] < first["plan"]["storage"]
    assert usage["bandwidth_used"] >= 0
