"""Logs: one line an event, as text for people or as JSON for programs, each with the id of the request it belongs
to."""

import logging
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "request_id"}


class _Json(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id", …}`: what `extra` names stands beside them."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        asked = request_id.get()
        record.request_id = f" [{asked}]" if asked else ""
        return super().format(record)


def configure(level: str, form: str) -> None:
    """Log to standard error, as `text` or `json`; replaces what was set up before."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json() if form == "json" else _Text("%(asctime)s %(levelname)s %(name)s%(request_id)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "alembic", "boto3", "botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
