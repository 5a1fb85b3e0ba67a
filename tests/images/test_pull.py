"""Downloads from a small HTTP server on this machine."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.images.test_store import make_disk, silent
from vpsd.errors import Unavailable, Unusable
from vpsd.images.pull import pull
from vpsd.images.recipes import Recipe
from vpsd.images.store import ImageStore

BODY = bytes(range(256)) * 20_000
SUM = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves `files`; may cut answers short, ignore ranges, fail or hang."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/disk.img": BODY}
        self.ranges = True
        self.cut_bytes: int | None = None
        self.status: int | None = None
        self.hangs = False
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        start = next((line.split("=")[1].rstrip("-") for line in head.split("\r\n") if line.startswith("Range:")), "")
        self.asked.append(f"{path} {start}".strip())
        if self.hangs:
            await reader.read()
        body = self.files.get(path)
        if self.status or body is None:
            writer.write(f"HTTP/1.1 {self.status or 404} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        elif start and self.ranges and int(start) >= len(body):
            writer.write(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            begin = int(start) if start and self.ranges else 0
            status = f"206 Partial\r\nContent-Range: bytes {begin}-{len(body) - 1}/{len(body)}" if begin else "200 OK"
            rest = body[begin:]
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(rest)}\r\nConnection: close\r\n\r\n".encode())
            writer.write(rest[: self.cut_bytes])
        await writer.drain()
        writer.close()


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield server
    listener.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running(Server()) as server:
        yield server


async def fetch(server: Server, folder: Path, **options: str | httpx.Timeout) -> bytes:
    checks = options if {"sha256", "sums_url"} & options.keys() else {"sha256": SUM, **options}
    await pull(f"{server.url}/disk.img", folder / "disk", silent, part=folder / "part", **checks)  # type: ignore[arg-type]
    assert not (folder / "part").exists()
    return (folder / "disk").read_bytes()


async def test_a_file_arrives_whole_and_is_verified(server: Server, tmp_path: Path) -> None:
    assert await fetch(server, tmp_path) == BODY


async def test_the_checksum_is_looked_up_in_a_list(server: Server, tmp_path: Path) -> None:
    server.files["/SUMS"] = f"{'0' * 64} *other.img\n{SUM} *disk.img\n".encode()
    assert await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS") == BODY


async def test_a_list_without_the_file_is_final(server: Server, tmp_path: Path) -> None:
    server.files["/SUMS"] = f"{SUM} *other-disk.img\n".encode()
    with pytest.raises(Unusable, match=r"no checksum for disk\.img"):
        await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS")


async def test_nothing_is_pulled_without_a_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="No checksum is known"):
        await pull(f"{server.url}/disk.img", tmp_path / "disk", silent, part=tmp_path / "part")
    assert server.asked == []


async def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_bytes = 3_000_000
    with pytest.raises(Unavailable):
        await fetch(server, tmp_path)
    server.cut_bytes = None
    have = (tmp_path / "part").stat().st_size
    assert have > 0
    assert await fetch(server, tmp_path) == BODY
    assert server.asked == ["/disk.img", f"/disk.img {have}"]


async def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "part").write_bytes(b"other beginning")
    assert await fetch(server, tmp_path) == BODY


async def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"of an older file")
    assert await fetch(server, tmp_path) == BODY
    assert server.asked == ["/disk.img 16", "/disk.img"]


async def test_a_part_that_is_already_whole_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(BODY)
    assert await fetch(server, tmp_path) == BODY


async def test_a_wrong_checksum_is_final_and_deletes_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="has the checksum"):
        await fetch(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_file_is_final(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(Unusable, match="404"):
        await fetch(server, tmp_path)


async def test_a_server_in_trouble_may_be_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(Unavailable, match="503"):
        await fetch(server, tmp_path)


async def test_a_server_that_is_away_may_be_asked_again(tmp_path: Path) -> None:
    async with running(Server()) as server:
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        await fetch(server, tmp_path)


async def test_a_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.hangs = True
    with pytest.raises(Unavailable, match="ReadTimeout"):
        await fetch(server, tmp_path, timeout=httpx.Timeout(0.1))


async def test_a_pulled_image_is_looked_at_before_it_is_stored(server: Server, tmp_path: Path) -> None:
    good = make_disk(tmp_path / "good.qcow2", size="2M").read_bytes()
    evil = make_disk(tmp_path / "evil.qcow2", "-b", str(tmp_path / "good.qcow2"), "-F", "qcow2").read_bytes()
    store = ImageStore(tmp_path / "images")

    def recipe(slug: str, body: bytes) -> Recipe:
        server.files[f"/{slug}.img"] = body
        sha256 = hashlib.sha256(body).hexdigest()
        return Recipe(slug=slug, kind="pull", url=f"{server.url}/{slug}.img", sha256=sha256)

    image = await store.ensure(recipe("good", good), silent)
    assert image.disk.read_bytes() == good
    assert image.virtual_size_bytes == 2 * 1024 * 1024
    with pytest.raises(Unusable, match="backing file"):
        await store.ensure(recipe("evil", evil), silent)
    assert [stored.slug for stored in store.available()] == ["good"]
