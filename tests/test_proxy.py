"""vpsd behind real proxies, set up as docs/proxy.md says: TLS, prefixes, addresses."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import Vpsd, free_port, until

PAPER = (Path(__file__).parent.parent / "docs/proxy.md").read_text(encoding="utf-8")
NAME = "vps.example.com"
CLIENT = "127.0.0.2"  # from where the proxies are asked: not an address that vpsd trusts
SERVERS = "/api/v1/servers/"


@pytest.fixture(scope="module")
def vpsd() -> Iterator[Vpsd]:
    """A vpsd that believes the paper's proxies on this machine, with a few servers."""
    made = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05, trusted_proxies="127.0.0.1,127.0.0.9")
    made.start()
    for number in range(3):
        made.create(f"web-{number}")
    yield made
    made.discard()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAPER, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    return found


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody trusts, and its key."""
    made = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    files = ["-out", str(made[0]), "-keyout", str(made[1])]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
    subprocess.run(command, check=True, capture_output=True)
    return made


def nginx(vpsd: Vpsd, folder: Path, port: int, *, prefix: bool) -> list[str | Path]:
    """The command that runs it with the paper's configuration."""
    servers, location = blocks("nginx")
    if prefix:
        servers = re.sub(r"    location / \{.*?\n    \}\n", lambda _: location, servers, flags=re.DOTALL)
    certificate, key = certify(folder)
    servers = servers.replace("listen 443", f"listen 127.0.0.1:{port}").replace("127.0.0.1:8000", vpsd.listen)
    servers = servers.replace(f"/etc/ssl/{NAME}.pem", str(certificate)).replace(f"/etc/ssl/{NAME}.key", str(key))
    paths = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; {'user root;' if folder.owner() == 'root' else ''}\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}\n{servers} }}\n"
    )
    return [program("nginx"), "-p", folder, "-c", folder / "nginx.conf"]


def caddy(vpsd: Vpsd, folder: Path, port: int, *, prefix: bool) -> list[str | Path]:
    """The same."""
    site = blocks("caddyfile")[prefix].replace("127.0.0.1:8000", vpsd.listen)
    certificate, key = certify(folder)
    site = site.replace(f"{NAME} {{", f"https://{NAME}:{port} {{\n tls {certificate} {key}\n bind 127.0.0.1")
    (folder / "Caddyfile").write_text(f"{{\n admin off\n auto_https disable_redirects\n}}\n{site}")
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Client:
    """Asks through the proxy, by its name, from an address of its own."""

    def __init__(self, vpsd: Vpsd, port: int) -> None:
        self._port = port
        transport = httpx.HTTPTransport(verify=False, local_address=CLIENT)  # nobody signed it
        headers = {"Authorization": f"Bearer {vpsd.token}"}
        self._http = httpx.Client(transport=transport, base_url=f"https://127.0.0.1:{port}", headers=headers)

    def ask(self, method: str, path: str, *, host: str = "", **options: Any) -> httpx.Response:
        headers = {"Host": host or f"{NAME}:{self._port}", **options.pop("headers", {})}
        extensions = {"sni_hostname": NAME}
        return self._http.request(method, path, headers=headers, extensions=extensions, **options)


@contextmanager
def running(command: list[str | Path], port: int, folder: Path) -> Iterator[None]:
    environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, f"{command[0]} to listen", 30)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("prefix", ["", "/cloud"])
@pytest.mark.parametrize("proxy", [nginx, caddy])
def test_as_the_paper_sets_it_up(vpsd: Vpsd, tmp_path: Path, proxy: Any, prefix: str) -> None:
    port = free_port()
    with running(proxy(vpsd, tmp_path, port, prefix=bool(prefix)), port, tmp_path):
        client = Client(vpsd, port)
        base = f"https://{NAME}:{port}{prefix}"
        seen, url = [], f"{prefix}{SERVERS}?page_size=1"
        while url:
            page = client.ask("GET", url).json()
            seen += [server["name"] for server in page["results"]]
            assert page["next"] is None or page["next"].startswith(f"{base}{SERVERS}?")
            url = (page["next"] or "").removeprefix(f"https://{NAME}:{port}")
        assert seen == ["web-0", "web-1", "web-2"]
        described = client.ask("GET", f"{prefix}/api/v1/openapi.json").json()
        assert described["servers"] == [{"url": base}]

        forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "/evil"}
        forged |= {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=198.51.100.1;host=evil.example"}
        answer = client.ask("GET", f"{prefix}{SERVERS}?page_size=1", headers=forged)
        assert answer.json()["next"].startswith(f"{base}{SERVERS}?")
        made = client.ask(
            "POST", f"{prefix}/api/v1/account/tokens/", headers=forged, json={"name": "x", "permissions": ["*:*"]}
        )
        assert made.status_code == 201, made.text
        events = client.ask("GET", f"{prefix}/api/v1/account/events/").json()
        assert next(event for event in events["results"] if event["action"] == "token.create")["address"] == CLIENT

        try:
            other = client.ask("GET", f"{prefix}{SERVERS}?page_size=1", host="evil.example")
        except httpx.TransportError:
            return  # no answer at all
        assert "evil" not in other.text


def test_beside_a_proxy_one_may_still_ask_vpsd_itself(vpsd: Vpsd) -> None:
    assert vpsd.get("servers/?page_size=1")["next"].startswith(f"http://{vpsd.listen}{SERVERS}?")
    headers = {"Authorization": f"Bearer {vpsd.token}", "Host": "evil.example"}
    page = httpx.get(f"http://{vpsd.listen}{SERVERS}?page_size=1", headers=headers).json()
    assert page["next"].startswith(f"{SERVERS}?")
