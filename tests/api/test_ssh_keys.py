"""Public keys: what is taken, what is refused, and what becomes of them."""

import asyncio
import base64
import subprocess
from pathlib import Path

import pytest

from tests.cloud import TINY, Cloud

KEYS = "/api/v1/ssh-keys/"
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV ana@laptop"


def make_key(folder: Path, kind: str, bits: int = 0) -> Path:
    path = folder / f"{kind}-{bits}"
    size = ["-b", str(bits)] if bits else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", "ana@laptop", "-f", path], check=True)
    return path


def fingerprint(path: Path) -> str:
    found = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True, text=True)
    return found.stdout.split()[1]


@pytest.mark.parametrize(
    ("kind", "bits"), [("ed25519", 0), ("rsa", 2048), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521)]
)
async def test_a_key_is_kept_with_the_fingerprint_of_ssh_keygen(
    cloud: Cloud, tmp_path: Path, kind: str, bits: int
) -> None:
    path = make_key(tmp_path, kind, bits)
    public = path.with_suffix(".pub")
    answer = await cloud.post(KEYS, {"name": "laptop", "public_key": public.read_text()})
    assert answer.status_code == 201, answer.text
    key = answer.json()
    assert set(key) == {"id", "uuid", "name", "public_key", "fingerprint", "created_at"}
    assert key["fingerprint"] == fingerprint(public)
    assert key["public_key"] == public.read_text().strip()
    assert (await cloud.get(f"{KEYS}{key['id']}/")).json() == key
    assert (await cloud.get(KEYS)).json()["results"] == [key]


async def refused(cloud: Cloud, public_key: str) -> str:
    answer = await cloud.post(KEYS, {"name": "laptop", "public_key": public_key})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"public_key"}
    message: str = answer.json()["public_key"][0]
    return message


async def test_a_short_rsa_key_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    path = make_key(tmp_path, "rsa", 1024)
    assert "at least 2048 bits" in await refused(cloud, path.with_suffix(".pub").read_text())


async def test_a_private_key_is_refused_and_nowhere_repeated(cloud: Cloud, tmp_path: Path) -> None:
    private = make_key(tmp_path, "ed25519").read_text()
    message = await refused(cloud, private)
    assert "private key" in message
    assert private.split("\n")[1] not in message


def rewritten(kind: str, *fields: bytes) -> str:
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return f"{kind} {base64.b64encode(blob).decode()}"


async def test_a_damaged_key_is_refused(cloud: Cloud) -> None:
    kind, encoded, _ = ED25519.split()
    point = b"\x04" + b"x" * 64
    for damaged in (
        "",
        "nonsense",
        "ssh-ed25519",
        f"{kind} {encoded[:-4]}",
        f"{kind} {encoded[:-1]}",
        f"{kind} {encoded}AAAA",
        f"{kind} !{encoded}",
        f"{kind} {encoded[:20]} {encoded[20:]}",
        f"{kind} ====",
        f"ssh-rsa {encoded}",
        f"ssh-dss {encoded}",
        f'command="id" {ED25519}',
        f"{ED25519}\n{ED25519}",
        rewritten("ssh-ed25519", b"ssh-ed25519"),
        rewritten("ssh-ed25519", b"ssh-ed25519", b"x" * 31),
        rewritten("ssh-ed25519", b"ssh-rsa", b"x" * 32),
        rewritten("ssh-rsa", b"ssh-rsa", b"\x01\x00\x01"),
        rewritten("ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256", b"nistp384", point),
        rewritten("ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256", b"nistp256", point[:-1]),
        rewritten("ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp256", b"nistp256", b"\x02" + point[1:]),
        "ssh-ed25519 \0",
        "😀 " + encoded,
    ):
        assert await refused(cloud, damaged), damaged
    assert (await cloud.get(KEYS)).json()["count"] == 0


async def test_control_characters_in_a_comment_do_not_reach_the_guest(cloud: Cloud) -> None:
    kind, encoded, _ = ED25519.split()
    answer = await cloud.post(KEYS, {"name": "laptop", "public_key": f"{kind} {encoded} ana\x1b[2J\x7f"})
    assert answer.status_code == 201
    assert answer.json()["public_key"] == f"{kind} {encoded} ana[2J"


async def test_the_same_key_twice_is_refused(cloud: Cloud) -> None:
    assert (await cloud.post(KEYS, {"name": "laptop", "public_key": ED25519})).status_code == 201
    other_comment = ED25519.replace("ana@laptop", "other")
    assert "already" in await refused(cloud, other_comment)
    answer = await cloud.post(KEYS, {"name": "laptop", "public_key": ED25519}, who="charlie")
    assert answer.status_code == 201


async def test_of_the_same_key_twice_at_once_one_wins(cloud: Cloud) -> None:
    body = {"name": "laptop", "public_key": ED25519}
    answers = await asyncio.gather(*(cloud.post(KEYS, body) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [201, 400, 400]


async def test_a_key_needs_a_name(cloud: Cloud) -> None:
    for name in ("", "x" * 256, "lap\0top", 5, None):
        answer = await cloud.post(KEYS, {"name": name, "public_key": ED25519})
        assert answer.status_code == 400, name
        assert set(answer.json()) == {"name"}
    assert (await cloud.post(KEYS, {})).json() == {
        "name": ["This field is required."],
        "public_key": ["This field is required."],
    }


async def test_a_deleted_key_is_gone_and_its_servers_keep_it(cloud: Cloud) -> None:
    key_id = (await cloud.post(KEYS, {"name": "laptop", "public_key": ED25519})).json()["id"]
    server_id = await cloud.create(ssh_key_id=key_id)
    assert (await cloud.ask("DELETE", f"{KEYS}{key_id}/")).status_code == 204
    assert (await cloud.ask("DELETE", f"{KEYS}{key_id}/")).status_code == 404
    assert (await cloud.get(f"{KEYS}{key_id}/")).status_code == 404
    assert (await cloud.row(server_id)).authorized_key == ED25519
    again = await cloud.post(KEYS, {"name": "laptop", "public_key": ED25519})
    assert again.json()["id"] > key_id


async def test_a_server_made_with_a_key_has_no_password(cloud: Cloud) -> None:
    key_id = (await cloud.post(KEYS, {"name": "laptop", "public_key": ED25519})).json()["id"]
    answer = await cloud.post("/api/v1/servers/", {"name": "web", **TINY, "ssh_key_id": key_id})
    assert answer.status_code == 201
    assert "password" not in answer.json()
    row = await cloud.row(answer.json()["id"])
    assert row.root_password_hash is None
    assert row.authorized_key == ED25519
