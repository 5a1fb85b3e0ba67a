"""A balancer of the simplest kind, and customers who ask through it without a pause.

Each connection goes to the next backend whose /health/ready says 200; nothing is tried a second time.
"""

import asyncio
import http.client
import itertools
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import httpx

from tests.running import until

_CHECK_SECONDS = 0.1


class _InThread:
    """An event loop in a thread of its own, until it is closed."""

    def __init__(self, *work: Coroutine[Any, Any, None]) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks = [self._loop.create_task(one) for one in work]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        """Cancel what it does, and wait for its end."""
        for task in self._tasks:
            self._loop.call_soon_threadsafe(task.cancel)
        self._thread.join()


class Balancer:
    """Spreads connections over the backends that are ready."""

    def __init__(self, backends: Sequence[str]) -> None:
        """`backends`: addresses like `127.0.0.1:8000`."""
        self.ready: set[str] = set()
        self._next = itertools.cycle(backends)
        self._count = len(backends)
        self.listen = ""
        self._thread = _InThread(self._serve(), *map(self._check, backends))

    async def _check(self, backend: str) -> None:
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                try:
                    is_ready = (await client.get(f"http://{backend}/health/ready")).status_code == 200
                except httpx.TransportError:
                    is_ready = False
                (self.ready.add if is_ready else self.ready.discard)(backend)
                await asyncio.sleep(_CHECK_SECONDS)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.listen = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            await server.serve_forever()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend = next((one for one in itertools.islice(self._next, self._count) if one in self.ready), None)
        try:
            if backend is None:
                return
            host, port = backend.split(":")
            there, to = await asyncio.open_connection(host, int(port))
            await asyncio.gather(_copy(reader, to), _copy(there, writer))
        except OSError:
            return
        finally:
            writer.close()

    def close(self) -> None:
        """End it."""
        self._thread.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()


class Load:
    """Customers who ask one thing after the other, each over a connection of its own."""

    def __init__(self, balancer: Balancer, token: str, customers: int = 2) -> None:
        until(lambda: balancer.listen, "the balancer")
        self._listen = balancer.listen
        self._headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        self._ends = False
        self.served = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(customers)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._ends:
            connection = http.client.HTTPConnection(self._listen, timeout=30)
            try:
                connection.request("GET", "/api/v1/servers/", headers=self._headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                continue
            finally:
                connection.close()
            if answer.status == 200:
                self.served += 1
            else:
                self.failed.append(f"{answer.status} {text!r}")

    def until_served(self, requests: int) -> None:
        """Wait for so many more requests to be answered."""
        wanted = self.served + requests
        until(lambda: self.served >= wanted or len(self.failed) > 20, f"{requests} answers")

    def end(self) -> list[str]:
        """Stop asking; what failed."""
        self._ends = True
        for thread in self._threads:
            thread.join()
        return self.failed
