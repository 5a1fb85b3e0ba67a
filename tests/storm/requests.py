"""Requests to the API inside one process, without a port between."""

from typing import Any, NamedTuple

import msgspec


class Lost(Exception):
    """Whoever was asked died before there was an answer."""


class Answer(NamedTuple):
    """What the API said."""

    status: int
    body: Any

    @property
    def is_accepted(self) -> bool:
        """Whether it shall be done."""
        return 200 <= self.status < 300

    @property
    def is_open(self) -> bool:
        """Whether nobody knows if it was done."""
        return self.status >= 500 and self.code != "database_unavailable"

    @property
    def operation_id(self) -> int:
        """The operation that does it; 0 where nothing has to be done."""
        operation = self.body.get("operation") if isinstance(self.body, dict) else None
        return int(operation["id"]) if isinstance(operation, dict) else 0

    @property
    def code(self) -> str | None:
        """The code of an error."""
        return self.body.get("code") if isinstance(self.body, dict) else None


async def ask(app: Any, method: str, path: str, token: str, body: Any = None, key: str | None = None) -> Answer:
    """Have an ASGI application answer a request."""
    path, _, query = path.partition("?")
    content = b"" if body is None else msgspec.json.encode(body)
    headers = [
        (b"host", b"vpsd.test"),
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    if key is not None:
        headers.append((b"idempotency-key", key.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("192.0.2.1", 40000),
        "server": ("vpsd.test", 80),
        "extensions": {},
    }
    sent: list[bytes] = []
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            sent.append(message.get("body", b""))

    await app(scope, receive, send)
    text = b"".join(sent)
    return Answer(status, msgspec.json.decode(text) if text else None)
