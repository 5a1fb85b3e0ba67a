"""Downloads from a small HTTP server on this machine."""

import asyncio
import hashlib
import lzma
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.images.synthetic import ESP, bios_disk, gpt_disk, qcow2_of
from tests.images.test_store import make_disk, silent
from vpsd.core.units import GIB, MIB
from vpsd.errors import Unavailable, Unusable
from vpsd.images import space
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
        self.moved: dict[str, str] = {}
        self.says_length = True
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
        if path in self.moved:
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {self.moved[path]}\r\nConnection: close\r\n\r\n".encode())
            writer.close()
            return
        if self.status or body is None:
            writer.write(f"HTTP/1.1 {self.status or 404} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        elif start and self.ranges and int(start) >= len(body):
            writer.write(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            begin = int(start) if start and self.ranges else 0
            status = f"206 Partial\r\nContent-Range: bytes {begin}-{len(body) - 1}/{len(body)}" if begin else "200 OK"
            rest = body[begin:]
            length = f"Content-Length: {len(rest)}\r\n" if self.says_length else ""
            writer.write(f"HTTP/1.1 {status}\r\n{length}Connection: close\r\n\r\n".encode())
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


async def fetch(server: Server, folder: Path, **options: Any) -> bytes:
    checks = options if {"sha256", "sums_url"} & options.keys() else {"sha256": SUM, **options}
    checks = {"limit_bytes": GIB, **checks}
    await pull(f"{server.url}/disk.img", folder / "disk", silent, part=folder / "part", **checks)
    assert not (folder / "part").exists()
    return (folder / "disk").read_bytes()


async def test_a_file_arrives_whole_and_is_verified(server: Server, tmp_path: Path) -> None:
    assert await fetch(server, tmp_path) == BODY


async def test_the_checksum_is_looked_up_in_a_list(server: Server, tmp_path: Path) -> None:
    server.files["/SUMS"] = f"{'0' * 64} *other.img\n{SUM} *disk.img\n".encode()
    assert await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS") == BODY


async def test_the_strongest_sum_of_a_list_counts(server: Server, tmp_path: Path) -> None:
    sha512 = hashlib.sha512(BODY).hexdigest()
    server.files["/SUMS"] = f"SHA256 (disk.img) = {'0' * 64}\nSHA512 (disk.img) = {sha512}\n".encode()
    assert await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS") == BODY


async def test_a_page_in_place_of_the_file_is_called_one(server: Server, tmp_path: Path) -> None:
    server.files["/disk.img"] = b"<!DOCTYPE html><title>Log in</title>"
    with pytest.raises(Unusable, match=r"was deleted\. It is an HTML page"):
        await fetch(server, tmp_path)


async def test_a_list_without_the_file_is_final(server: Server, tmp_path: Path) -> None:
    server.files["/SUMS"] = f"{SUM} *other-disk.img\n".encode()
    with pytest.raises(Unusable, match=r"no checksum for disk\.img"):
        await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS")


async def test_nothing_is_pulled_without_a_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="No checksum is known"):
        await pull(f"{server.url}/disk.img", tmp_path / "disk", silent, part=tmp_path / "part", limit_bytes=GIB)
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
    good = qcow2_of(bios_disk(tmp_path / "good.raw")).read_bytes()
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


async def test_a_packed_image_is_verified_as_published_and_unpacked(server: Server, tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk.raw", [ESP], loaders=["BOOTX64.EFI"])
    body = lzma.compress(disk.read_bytes())
    server.files["/disk.raw.xz"] = body
    recipe = Recipe(
        slug="packed", kind="pull", url=f"{server.url}/disk.raw.xz", sha256=hashlib.sha256(body).hexdigest()
    )
    image = await ImageStore(tmp_path / "images").ensure(recipe, silent)
    assert (image.firmware, image.virtual_size_bytes) == ("uefi", disk.stat().st_size)
    assert {file.name for file in image.disk.parent.iterdir()} == {"disk.qcow2", "image.json"}


async def test_what_was_fetched_and_is_no_disk_is_refused_by_its_url(server: Server, tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "arm.raw", [ESP], loaders=["BOOTAA64.EFI"]).read_bytes()
    store = ImageStore(tmp_path / "images")
    for path, body, said in (("/page", b"<html>", "is an HTML page"), ("/arm", disk, "is for 64-bit ARM machines")):
        server.files[path] = body
        sha256 = hashlib.sha256(body).hexdigest()
        with pytest.raises(Unusable, match=f"{server.url}{path} {said}"):
            await store.ensure(Recipe(slug="bad", kind="pull", url=f"{server.url}{path}", sha256=sha256), silent)


@pytest.mark.parametrize("sha256", [None, SUM])
async def test_a_list_over_plain_http_is_refused_before_anything_is_fetched(
    server: Server, tmp_path: Path, sha256: str | None
) -> None:
    options = {"sha256": sha256, "sums_url": "http://mirror.example/SHA256SUMS"}
    if sha256 is None:
        with pytest.raises(Unusable, match=r"plain HTTP.*https:// URL as sums_url, or the image's SHA-256 as sha256"):
            await fetch(server, tmp_path, **options)
        assert server.asked == []
    else:  # that comes from elsewhere
        assert await fetch(server, tmp_path, **options) == BODY


async def test_a_list_that_leads_to_plain_http_is_refused(server: Server, tmp_path: Path) -> None:
    server.moved["/SUMS"] = "http://mirror.example/SHA256SUMS"
    with pytest.raises(Unusable, match="plain HTTP"):
        await fetch(server, tmp_path, sums_url=f"{server.url}/SUMS")
    assert server.asked == ["/SUMS"]


@pytest.mark.parametrize("said", [True, False])
async def test_a_file_that_is_larger_than_an_image_may_be_is_given_up(
    server: Server, tmp_path: Path, said: bool
) -> None:
    server.says_length = said
    with pytest.raises(Unusable, match="larger than 2 MiB"):
        await fetch(server, tmp_path, limit_bytes=2 * MIB)
    part = tmp_path / "part"
    assert (part.stat().st_size if part.exists() else 0) <= (0 if said else 2 * MIB)


@pytest.mark.parametrize("said", [True, False])
async def test_a_download_leaves_the_disk_some_space(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    server.says_length = said
    part = tmp_path / "part"

    def small_disk(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=space.RESERVE_BYTES + 3 * MIB - (part.stat().st_size if part.exists() else 0))

    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", small_disk)
        with pytest.raises(Unavailable, match=r"needs \d+ MiB more, and the disk for images has \d+ MiB to spare"):
            await fetch(server, tmp_path)
    assert (0 < part.stat().st_size <= 3 * MIB) != said  # what is known to be too much is not begun
    assert await fetch(server, tmp_path) == BODY
