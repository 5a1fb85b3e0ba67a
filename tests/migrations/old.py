"""Databases as earlier commits made them, with rows in every table."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tests.cloud import Cloud
from vpsd.billing.verify import verify
from vpsd.core import db
from vpsd.core.ids import token_hash
from vpsd.migrations import schema, shape
from vpsd.migrations.__main__ import VERSIONS
from vpsd.servers import queries
from vpsd.settings import Settings

LANDED = Path(__file__).with_name("landed")
_FROZEN = ("0001_first.py", "0002_accounts_and_money.py", "0003_tags_and_undelete.py", "0004_backups.py")

TOKEN = "vps_of-the-time-before"
HOUR_MS = 3_600_000
OLD_MS = 1_748_649_600_000  # the 31st of May 2025
DELETED_MS = OLD_MS + 5 * HOUR_MS
HOURLY = 1_000_000  # micros
_GB = 1 << 30
_MOVED = 12 * _GB
_OVER = _MOVED - 256 * _GB * 5 // 672  # for the five hours in which there was a plan of 256 GB a month
_A_GB = 10_000  # micros

Row = tuple[str, dict[str, Any]]
_RENAMED = {"gone_at_ms": "purged_at_ms", "settled_at_ms": "charged_at_ms"}  # by the fifth migration


def write_versions(commit: str, folder: Path) -> None:
    """Write the migrations of a commit, byte for byte."""
    folder.mkdir(parents=True)
    for name in _FROZEN:
        shutil.copy(VERSIONS / name, folder)
    for change in (LANDED / f"{commit}.diff").read_text(encoding="utf-8").split("diff --git ")[1:]:
        head, *hunks = re.split(r"^@@.*\n", change, flags=re.MULTILINE)
        path = folder / Path(head.splitlines()[0]).name
        if "deleted file" in head:
            path.unlink()
            continue
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
            assert text.count(before) == 1 or not text, path
            text = text.replace(before, after, 1)
        path.write_text(text, encoding="utf-8")
        blob = hashlib.sha1(f"blob {len(text.encode())}\0{text}".encode(), usedforsecurity=False).hexdigest()
        assert re.search(r"^index \w+\.\.(\w+)", head, re.MULTILINE)[1] in blob, path  # type: ignore[index]


def migrate(connection: Connection, commits: str, folder: Path) -> None:
    """Do as vpsd did at a commit, or at one after the other ("a56cc15+b7321fc")."""
    from alembic import command

    for commit in commits.split("+"):
        write_versions(commit, folder / commit)
        config = schema.alembic_config(connection)
        config.set_main_option("path_separator", "os")
        config.set_main_option("version_locations", str(folder / commit))
        command.upgrade(config, "head")


def fill(connection: Connection) -> None:
    """Put rows into every table that there is, into such columns as there are."""
    there = shape.describe(connection)
    columns = {tuple(re.split(r": column | ", line)[:2]) for line in there if ": column " in line}
    present = shape.tables(there)
    unmeant = "plans: column price_from_ms bigint" not in there
    for table, values in [*_ROWS, *(_money(unmeant) if "rentals" in present else []), *_BACKUPS]:
        if table in present:
            values = {
                name if (table, name) in columns else _RENAMED.get(name, name): value for name, value in values.items()
            }
            fitting = {name: value for name, value in values.items() if (table, name) in columns and value is not None}
            kinds = [sa.column(name, _kind(value)) for name, value in fitting.items()]
            connection.execute(sa.insert(sa.table(table, *kinds)).values(fitting))
    assert all(dump(connection).values())


def dump(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    tables = {
        table: [dict(row) for row in connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings()]
        for table in sorted(shape.tables(shape.describe(connection)))
    }
    return {table: sorted(rows, key=lambda row: list(row.values())[:2]) for table, rows in tables.items()}


def _kind(value: Any) -> sa.types.TypeEngine[Any]:
    kinds: dict[type, sa.types.TypeEngine[Any]] = {
        bool: sa.Boolean(),
        int: sa.BigInteger(),
        float: sa.Float(),
        bytes: sa.LargeBinary(),
    }
    return kinds.get(type(value), sa.String())


def _server(number: int, account: int, name: str, status: str, **more: Any) -> Row:
    return "servers", {
        "uuid": f"s-{number}",
        "account_id": account,
        "name": name,
        "hostname": name,
        "status": status,
        "plan_id": 4,
        "os_id": 1,
        "location": "us-west",
        "backups_enabled": False,
        "created_at_ms": OLD_MS,
        "updated_at_ms": OLD_MS,
        "provisioned_at_ms": OLD_MS,
        **more,
    }


def _token(number: int, account: int, secret: str, **more: Any) -> Row:
    named = {"uuid": f"t-{number}", "account_id": account, "name": f"token {number}", "permissions": "*:*"}
    hashed = token_hash(secret)
    return "tokens", {**named, "hash": hashed, "lookup": hashed[:16], "created_at_ms": OLD_MS, **more}


def _account(number: int, name: str, **more: Any) -> Row:
    return "accounts", {"uuid": f"a-{number}", "name": name, "created_at_ms": OLD_MS, **more}


_GONE = {"deleted_at_ms": DELETED_MS, "gone_at_ms": DELETED_MS}
_SIZE = {"vcpus": 1, "memory_mb": 256, "storage_gb": 2, "bandwidth_gb": 256}
_PLACE = {"code": "us-west", "country_name": "United States", "country_code": "US"}
_DONE = {"status": "succeeded", "progress": 1.0, "attempts": 1, "fence": 1}
_KEY = {"public_key": "ssh-ed25519 AAAA", "fingerprint": "SHA256:x"}
_ROWS: list[Row] = [
    ("installation", {"id": 1, "instance": "0badcafe"}),
    _account(1, "default"),
    _account(2, "guest"),
    _token(1, 1, TOKEN),
    _token(2, 2, "vps_revoked", revoked_at_ms=OLD_MS),
    ("plans", {"id": 4, "name": "Nano VPS", "slug": "nano", **_SIZE, "description": "", "available": True}),
    ("operating_systems", {"id": 1, "name": "Tiny Linux", "slug": "tiny", "source": "tiny", "available": True}),
    ("locations", {"id": 1, "name": "US West", **_PLACE, "available": True}),
    _server(1, 1, "runs", "active"),
    _server(2, 2, "rests", "stopped"),
    _server(3, 1, "never-worked", "error", provisioned_at_ms=None),
    _server(4, 1, "deleted", "deleting", **_GONE),
    _server(5, 1, "half-made", "deleting", provisioned_at_ms=None, **_GONE),
    ("ssh_keys", {"uuid": "k-1", "account_id": 1, "name": "laptop", **_KEY, "created_at_ms": OLD_MS}),
    ("addresses", {"address": "10.77.0.2", "server_id": 1, "assigned_at_ms": OLD_MS}),
    (
        "operations",
        {"uuid": "o-1", "server_id": 1, "command": "create", **_DONE, "run_at_ms": OLD_MS}
        | {"created_at_ms": OLD_MS, "finished_at_ms": OLD_MS},
    ),
    ("traffic", {"server_id": 1, "month": "2025-05", "received_bytes": 1_000_000, "sent_bytes": 2_000_000}),
    ("usage", {"server_id": 1, "sampled_at_ms": OLD_MS, "cpu_percent": 1.5, "sent_bytes": 7}),
]


def _money(unmeant: bool) -> list[Row]:
    """What accounts had and were charged; `unmeant` is how the first 0002 left transfer of the time before prices."""
    moved: dict[str, Any] = {"received_bytes": 1_000_000, "sent_bytes": _MOVED}
    april = {"server_id": 2, "month": "2025-04", "received_bytes": 1_000_000, "sent_bytes": 9_000 * _GB}
    over = _OVER * _A_GB // _GB
    return [
        _account(3, "broke", credit_limit_micros=0, exhausted_at_ms=OLD_MS + HOUR_MS),
        _server(6, 3, "unpaid", "suspended", suspended_from="active", suspended_at_ms=OLD_MS + HOUR_MS),
        ("people", {"account_id": 1, "email": "a@vpsd.test", "first_name": "A", "last_name": "B", "role": "owner"}
            | {"created_at_ms": OLD_MS}),
        ("hosts", {"id": 1, "name": "box", "cpus": 8, "memory_mb": 16_384, "storage_gb": 500, "seen_at_ms": OLD_MS}),
        ("events", {"account_id": 1, "at_ms": OLD_MS, "actor": "operator", "action": "account.add"}),
        ("idempotency_keys", {"token_id": 1, "key": "k", "fingerprint": "f", "owner": "r-1", "lease_until_ms": OLD_MS}
            | {"status_code": 201, "answer": b"\x00sealed", "created_at_ms": OLD_MS}),
        *(_entry(1, 1, 50 * HOURLY, "credit"), _entry(2, 1, -7 * HOURLY), _entry(3, 3, HOURLY, "credit")),
        *(_entry(4, 3, -HOURLY), _entry(5, 2, 0), _entry(6, 1, -over)),
        *(_rental(1, 1, hours=2), _rental(2, 2, hours=2, price=0), _rental(3, 1, confirmed_at_ms=None)),
        *(_rental(4, 1, hours=5, to_ms=DELETED_MS), _rental(5, 1, to_ms=DELETED_MS, confirmed_at_ms=None)),
        _rental(6, 3, hours=1),
        *(_charge(2, 1, hour) for hour in range(2)),
        *(_charge(5, 2, hour, amount=0) for hour in range(2)),
        *(_charge(2, 4, hour) for hour in range(5)),
        _charge(4, 6, 0),
        ("charges", {"ledger_id": 6, "server_id": 4, "plan_id": 4, "kind": "transfer", "from_ms": 1_746_057_600_000}
            | {"to_ms": DELETED_MS, "quantity": _OVER, "rate_micros": _A_GB, "amount_micros": over}),
        ("traffic", {"server_id": 4, "month": "2025-05", **moved, "settled_at_ms": DELETED_MS}),
        ("traffic", {**april, "settled_at_ms": OLD_MS if unmeant else 0}),
        ("traffic", {"server_id": 2, "month": "2025-05", "received_bytes": 5, "sent_bytes": 9_000 * _GB}),
    ]  # fmt: skip


def _entry(number: int, account: int, micros: int, kind: str = "usage") -> Row:
    told = {"uuid": f"l-{number}", "kind": kind, "description": "", "created_at_ms": OLD_MS}
    return "ledger", {**told, "account_id": account, "amount_micros": micros}


def _rental(server: int, account: int, *, hours: int = 0, price: int = 672 * HOURLY, **more: Any) -> Row:
    had = {"server_id": server, "account_id": account, "plan_id": 4, "price_monthly_micros": price, "bandwidth_gb": 256}
    charged = {"from_ms": OLD_MS, "confirmed_at_ms": OLD_MS, "charged_until_ms": OLD_MS + hours * HOUR_MS}
    return "rentals", {**had, **charged, **more}


def _charge(ledger: int, server: int, hour: int, amount: int = HOURLY) -> Row:
    from_ms = OLD_MS + hour * HOUR_MS
    of = {"ledger_id": ledger, "server_id": server, "plan_id": 4, "kind": "server"}
    how_much = {"quantity": HOUR_MS, "rate_micros": 672 * amount, "amount_micros": amount}
    return "charges", {**of, "from_ms": from_ms, "to_ms": from_ms + HOUR_MS, **how_much}


_COPY = {"account_id": 1, "server_id": 1, "kind": "manual", "status": "completed", "os_id": 1, "disk": 0}
_LIES = {"target": "directory", "disk_bytes": 9, "size_bytes": 9, "sent_bytes": 9, "created_at_ms": OLD_MS}
_BACKUPS: list[Row] = [
    ("backups", {"uuid": "b-1", **_COPY, **_LIES, "incremental": False}),
    ("backups", {"uuid": "b-2", **_COPY, **_LIES, "parent_id": 1, "incremental": True}),
    ("backups", {"uuid": "b-3", **_COPY, "status": "failed", "created_at_ms": OLD_MS}),
]


async def opened(url: str, now_ms: int) -> Cloud:
    """vpsd on a database that is at its schema."""
    settings = Settings(hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0)
    cloud = Cloud(await db.connect(url), settings)
    cloud.clock.advance((now_ms - cloud.clock.now_ms()) / 1000)
    await cloud.compose()
    assert cloud.instance == "0badcafe"
    cloud.tokens = {"default": TOKEN}
    return cloud


async def differences(cloud: Cloud) -> list[tuple[str, int, list[str]]]:
    """What `vpsd billing verify` would find."""
    async with cloud.runtime.snapshot() as ctx:
        found = await verify(ctx, queries.lives)
    assert {"default", "guest"} <= {check.account for check in found}
    return [(c.account, c.difference_micros, c.problems) for c in found if c.difference_micros or c.problems]
