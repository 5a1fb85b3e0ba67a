"""The published page's examples, run as they stand there: only address, token and server id are replaced."""

import ast
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api.serving import serving
from tests.cloud import Cloud
from vpsd.lifecycle import Status

EXAMPLES = Path(__file__).parent / "examples"

# What vpsd adds to the published answers.
ADDED = {
    "status_detail",
    "freeze_for_backups",
    "uuid",
    "next",
    "previous",
    "ssh",
    "error",
    "password",
    "tags",
    "protected",
    "delete_at",
    "operation",
}
ADDED |= {"placement_group_id", "user_data_status", "user_data_error", "ssh_host_keys"}
# Figures that nobody measured, and addresses that nobody has.
MAY_BE_NULL = {"ipv6_address", "cpu_percent", "memory_used", "disk_used", "bandwidth_used"}

STATUS_BEFORE = {"server_start": Status.STOPPED}
STATUS_CODES = {"server_create": 201, "server_delete": 204}
SHAPES = {"server_update": "server_get", "server_patch": "server_get"}  # the page shows no answer of these
OPERATIONS = sorted(path.stem for path in EXAMPLES.glob("*.curl"))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("language", ["curl", "python"])
async def test_a_published_example_works_as_it_stands(
    cloud: Cloud, tmp_path: Path, operation: str, language: str
) -> None:
    server_id = await cloud.have_server("web-server-01", STATUS_BEFORE.get(operation, Status.ACTIVE))
    text = (EXAMPLES / f"{operation}.{language}").read_text()
    async with serving(cloud) as url:
        for published, ours in (
            ("https://admin.vps.org", url),
            ("YOUR_API_TOKEN", cloud.tokens["alice"]),
            ("12345", str(server_id)),
        ):
            text = text.replace(published, ours)
        status_code, answer = await _run(language, text, tmp_path)
    if status_code is not None:
        assert status_code == STATUS_CODES.get(operation, 200)
    expected = EXAMPLES / f"{SHAPES.get(operation, operation)}.json"
    if operation == "server_delete":
        assert answer is None
    else:
        _assert_shape(answer, json.loads(expected.read_text()), "")


async def _run(language: str, text: str, folder: Path) -> tuple[int | None, Any]:
    # curl is told by its own configuration file to say the status code, so that the command stays as it is.
    (folder / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n')
    command = ["bash", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "CURL_HOME": str(folder)}, stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0
    if language == "curl":
        body, _, code = output.rpartition("\n")
        return int(code), json.loads(body) if body else None
    printed = ast.literal_eval(output)
    return (printed, None) if isinstance(printed, int) else (None, printed)


def _assert_shape(found: Any, published: Any, where: str) -> None:
    """The same keys, nested the same way, of the same types; nothing more but what vpsd adds on purpose."""
    if isinstance(published, dict):
        assert isinstance(found, dict), where
        assert set(published) <= set(found) <= set(published) | ADDED, where
        for key, value in published.items():
            if not (found[key] is None and key in MAY_BE_NULL):
                _assert_shape(found[key], value, f"{where}.{key}")
    elif isinstance(published, list):
        assert isinstance(found, list), where
        assert found, where
        for entry in found:
            _assert_shape(entry, published[0], f"{where}[]")
    elif isinstance(published, float):
        assert isinstance(found, int | float), where
    else:
        assert type(found) is type(published), where


async def test_the_examples_are_all_there() -> None:
    assert len(OPERATIONS) == 9
    assert len(list(EXAMPLES.glob("*.python"))) == 9


async def test_head_answers_like_get_without_a_body(cloud: Cloud) -> None:
    async with serving(cloud) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        token = cloud.tokens["alice"]
        head = (
            f"HEAD /api/v1/servers/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 200 ")
    assert body == b""


async def test_odd_bytes_on_the_wire_are_the_senders_fault(cloud: Cloud) -> None:
    await cloud.create()
    token = cloud.tokens["alice"].encode()
    async with serving(cloud) as url:
        for start in (
            b"GET /api/v1/servers/?location=\xff\xfe HTTP/1.1\r\nHost: x",
            b"GET /api/v1/servers/?page=%00&status=%ff HTTP/1.1\r\nHost: x",
            b"GET /api/v1/servers/ HTTP/1.1\r\nHost: x:99999",
            b"GET /api/v1/servers/?page_size=0 HTTP/1.1\r\nHost: \xff",
            b"GET /api/v1/servers/%00/ HTTP/1.1\r\nHost: x",
            b"GET /api/v1/servers/%ff%fe/ HTTP/1.1\r\nHost: x",
            b"GET /api/v1/servers/" + b"9" * 5000 + b"/ HTTP/1.1\r\nHost: x",
            b"POST /api/v1/servers/ HTTP/1.1\r\nHost: x\r\nContent-Type: \xff\r\nContent-Length: 2",
            b"POST /api/v1/servers/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999",
            b"SURPRISE /api/v1/servers/ HTTP/1.1\r\nHost: x",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(start + b"\r\nAuthorization: Bearer " + token + b"\r\nConnection: close\r\n\r\n{}")
            answer = await reader.read()
            writer.close()
            assert int(answer.split(b" ", 2)[1]) < 500, (start, answer)
