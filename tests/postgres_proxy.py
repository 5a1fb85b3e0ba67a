"""Stands between vpsd and its PostgreSQL, and can take it away: at any moment, or in the middle of a commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes everything on, unless told otherwise."""

    def __init__(self, url: str, folder: Path) -> None:
        self._behind = f"{parse_qs(urlsplit(url).query)['host'][0]}/{_SOCKET}"
        self._folder = folder
        self.url = f"{url.partition('?')[0]}?host={folder}"
        self._links: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.swallows = False  # everything, as a network does that loses all packets
        self.cut_commit: str | None = None  # before or after PostgreSQL has heard of it; once

    async def open(self) -> None:
        """Be there."""
        self._server = await asyncio.start_unix_server(self._serve, self._folder / _SOCKET)

    async def close(self) -> None:
        """Be away: whoever is connected is cut off, and nobody can connect."""
        assert self._server is not None
        self._server.close()
        (self._folder / _SOCKET).unlink(missing_ok=True)
        for writer in list(self._links):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._behind)
        self._links |= {writer, behind_writer}
        back = asyncio.create_task(_pass_on(behind_reader, writer))
        try:
            while data := await reader.read(65536):
                if self.swallows:
                    continue
                if self.cut_commit is not None and b"COMMIT;" in data:
                    moment, self.cut_commit = self.cut_commit, None
                    if moment == "after":
                        back.cancel()
                        await asyncio.wait({back})
                        behind_writer.write(data)
                        assert b"COMMIT" in await behind_reader.read(65536)
                    return
                behind_writer.write(data)
        except OSError:
            pass
        finally:
            back.cancel()
            for one in (writer, behind_writer):
                self._links.discard(one)
                with suppress(OSError):
                    one.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def proxied(url: str, folder: Path) -> AsyncIterator[Proxy]:
    """A proxy before the PostgreSQL of a URL."""
    proxy = Proxy(url, folder)
    await proxy.open()
    yield proxy
    await proxy.close()
