"""A vpsd's state in a file, and back: in either kind of database, while others write, and nothing that is damaged."""

import asyncio
import gzip
import hashlib
import shutil
import sqlite3
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection

from tests.api.tables import Dump, dump
from tests.cloud import TINY, Cloud
from tests.migrations.old import dump as old_dump
from tests.migrations.old import fill
from tests.postgres import administer
from tests.running import Vpsd, environment, run
from vpsd import state
from vpsd.core import db
from vpsd.core.sums import SUMS
from vpsd.errors import Misconfigured
from vpsd.migrations import HEAD, rows, schema, shape
from vpsd.settings import Settings

ODD = "ünïcode \U0001f600 'quoted' \"twice\" $HOME # no comment"


def quiet(_fraction: float, _text: str) -> None:
    """No progress."""


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """The settings of a machine that has nothing yet."""
    folder = tmp_path / "new"
    folder.mkdir()
    if request.param == "sqlite":
        yield Settings(data_dir=folder, hypervisor="simulator")
        return
    server: str = request.getfixturevalue("postgres")
    name = f"state_{zlib.crc32(request.node.nodeid.encode()):x}"
    asyncio.run(administer(server, f'CREATE DATABASE "{name}"'))
    yield Settings(data_dir=folder, hypervisor="simulator", database_url=server.format(name))
    asyncio.run(administer(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """An empty PostgreSQL."""
    name = f"moved_{zlib.crc32(request.node.nodeid.encode()):x}"
    asyncio.run(administer(postgres, f'CREATE DATABASE "{name}"'))
    yield postgres.format(name)
    asyncio.run(administer(postgres, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Those of the vpsd that `cloud` is."""
    key = tmp_path / "the.key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    (tmp_path / "token").write_text("vps_secret\n")
    (tmp_path / "catalog.toml").write_text(f"# {ODD}\n")
    url = None if database_url.startswith("sqlite") else database_url
    return Settings(data_dir=tmp_path, hypervisor="simulator", database_url=url, backup_key_file=key)


async def contents(database: db.Database) -> Dump:
    """All rows but sums, which a state does not hold: filling the other tables makes them anew."""
    found = await dump(database)
    for sums in SUMS:
        assert found.pop(sums.table.name)
    return found


async def use(cloud: Cloud) -> None:
    """Have rows of most kinds: servers, keys of requests, tags, user data, copies, money, and what is gone."""
    first = await cloud.have_server("first")
    second = await cloud.have_server("second", who="charlie")
    wish = {"name": "third", **TINY, "user_data": "#!/bin/sh\necho '✓ \\ \"'\n"}
    answer = await cloud.post("/api/v1/servers/", wish, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 201, answer.text
    tagged = await cloud.ask("PATCH", f"/api/v1/servers/{first}/", json={"tags": ["db", "eu.1"]})
    assert tagged.status_code == 200, tagged.text
    await cloud.work()
    await cloud.have_copy(first)
    await cloud.have_copy(first, "snapshot")
    await cloud.sampler().sample()
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{second}/", who="charlie")).status_code == 204
    cloud.clock.advance(3 * 3600)
    await cloud.settle()
    await cloud.biller().bill()


async def test_a_state_comes_back_row_by_row_into_either_kind_of_database(
    cloud: Cloud, settings: Settings, target: Settings, tmp_path: Path
) -> None:
    await use(cloud)
    file = tmp_path / "vpsd.state"
    was = await contents(cloud.database)
    assert {name for name, found in was.items() if found} >= {
        *("accounts", "tokens", "servers", "operations", "ledger", "rentals", "events", "idempotency_keys"),
        *("backups", "addresses", "server_tags", "hosts"),
    }

    environ = {"VPSD_WORKERS": "7", "VPSD_PUBLIC_URL": ODD, "HOME": "/root"}
    made = await state.back_up(settings, environ, file, "now", quiet)

    assert made.schema == HEAD
    assert made.rows == {name: len(found) for name, found in (await contents(cloud.database)).items()}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await state.restore(target, file, quiet)
    database = await db.connect(target.url)
    found = await contents(database)
    async with msgspec.structs.replace(cloud.runtime, database=database).read() as ctx:
        assert [await sums.differences(ctx) for sums in SUMS] == [[], []]
    for name in was:  # by hash: texts have another order in the other kind
        assert sorted(map(repr, found[name])) == sorted(map(repr, was[name])), name
    await database.close()
    for name, content in (("token", "vps_secret\n"), ("catalog.toml", f"# {ODD}\n"), ("backup.key", "ab" * 32 + "\n")):
        assert (target.data_dir / name).read_text() == content
        assert stat.S_IMODE((target.data_dir / name).stat().st_mode) == 0o600
    shell = f'set -a; . "{target.data_dir}/settings.env"; printf "%s|%s|%s" "$VPSD_WORKERS" "$VPSD_PUBLIC_URL" "$HOME"'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", shell, stdout=asyncio.subprocess.PIPE, env={"HOME": "/mine"}
    )
    assert (await process.communicate())[0].decode() == f"7|{ODD}|/mine"


async def test_keys_go_on_where_they_were_even_if_the_last_rows_were_deleted(
    cloud: Cloud, settings: Settings, target: Settings, tmp_path: Path
) -> None:
    answers = [
        (await cloud.post("/api/v1/placement-groups/", {"name": f"g{n}", "policy": "spread"})).json() for n in range(3)
    ]
    for answer in answers[1:]:
        assert (await cloud.ask("DELETE", f"/api/v1/placement-groups/{answer['id']}/")).status_code == 204
    await state.back_up(settings, {}, tmp_path / "state", "now", quiet)
    await state.restore(target, tmp_path / "state", quiet)

    def last(connection: Connection) -> list[int | None]:
        heads = [msgspec.json.decode(line) for line in rows.dump(connection) if line.startswith(b'{"table"')]
        return [head["last"] for head in heads if head["table"] == "placement_groups"]

    assert await schema.snapshot(target.url, last) == [answers[-1]["id"]]


async def test_a_backup_is_of_one_moment_and_keeps_nobody_from_writing(
    cloud: Cloud, settings: Settings, tmp_path: Path
) -> None:
    await cloud.have_server("before")
    was = {name: len(found) for name, found in (await contents(cloud.database)).items()}
    writing: list[str] = []
    loop = asyncio.get_running_loop()

    def write_meanwhile(_fraction: float, table: str) -> None:
        if table == "servers" and settings.database_url is None:  # the snapshot is read in a thread
            asyncio.run_coroutine_threadsafe(_pay(cloud), loop).result(20)
            writing.append(table)

    made = await state.back_up(settings, {}, tmp_path / "state", "now", write_meanwhile)

    assert writing == (["servers"] if settings.database_url is None else [])
    assert made.rows == was


async def _pay(cloud: Cloud) -> None:
    await cloud.have_balance(5_000_000)


async def test_what_is_there_is_refused_and_with_replace_set_aside(
    cloud: Cloud, settings: Settings, target: Settings, tmp_path: Path
) -> None:
    await use(cloud)
    file = tmp_path / "state"
    await state.back_up(settings, {}, file, "now", quiet)
    await state.restore(target, file, quiet)
    (target.data_dir / "token").write_text("another")

    with pytest.raises(Misconfigured, match="nothing was"):
        await state.restore(target, file, quiet)
    assert (target.data_dir / "token").read_text() == "another"

    if target.database_url is not None:
        with pytest.raises(Misconfigured, match="empty database"):
            await state.restore(target, file, quiet, replace=True)
        assert (target.data_dir / "token").read_text() == "another"
        return
    said = await state.restore(target, file, quiet, replace=True)
    assert any("vpsd.sqlite.1" in line for line in said)
    assert (target.data_dir / "token.1").read_text() == "another"
    assert (target.data_dir / "token").read_text() == "vps_secret\n"
    assert (target.data_dir / "vpsd.sqlite.1").stat().st_size


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a vpsd that has hardly anything."""
    folder = tmp_path_factory.mktemp("small")
    asyncio.run(schema.run(f"sqlite:///{folder}/vpsd.sqlite", lambda connection: _fill(connection, HEAD)))
    asyncio.run(state.back_up(Settings(data_dir=folder), {}, folder / "state", "now", quiet))
    return (folder / "state").read_bytes()


def _fill(connection: Connection, revision: str) -> None:
    """Rows in every table that there was, as that revision has them."""
    from alembic import command

    command.upgrade(schema.alembic_config(connection), min(revision, "0005"))
    fill(connection)
    command.upgrade(schema.alembic_config(connection), revision)


def test_a_file_that_is_cut_off_or_changed_anywhere_is_refused_and_nothing_is_written(
    small: bytes, tmp_path: Path
) -> None:
    file, settings = tmp_path / "state", Settings(data_dir=tmp_path / "new")
    (tmp_path / "new").mkdir()
    # The first ten bytes are gzip's: what they say besides is of no consequence.
    damaged = [small[:length] for length in range(0, len(small), 97)]
    damaged += [small[:at] + bytes([small[at] ^ 0x10]) + small[at + 1 :] for at in range(10, len(small), 53)]
    assert len(damaged) > 50
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(Misconfigured):
            asyncio.run(state.restore(settings, file, quiet))
    assert list((tmp_path / "new").iterdir()) == []


def _changed(small: bytes, old: bytes, new: bytes) -> bytes:
    """As if it had been written so: with the right sum."""
    text = gzip.decompress(small)
    body = text[: text.rindex(b'{"sha256"')]
    assert old in body
    body = body.replace(old, new, 1)
    return gzip.compress(body + msgspec.json.encode({"sha256": hashlib.sha256(body).hexdigest()}) + b"\n")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'{"format":1', b'{"format":2', "later version"),
        (b'{"schema":"' + HEAD.encode(), b'{"schema":"9999', "does not know"),
        (b'"rows":1,', b'"rows":2,', "same"),
        (b'"digest":"', b'"digest":"f', "same"),
    ],
)
def test_a_file_of_a_later_version_or_with_other_sums_leaves_an_empty_database(
    small: bytes, target: Settings, tmp_path: Path, old: bytes, new: bytes, match: str
) -> None:
    file = tmp_path / "state"
    file.write_bytes(_changed(small, old, new))

    with pytest.raises(Misconfigured, match=match):
        asyncio.run(state.restore(target, file, quiet))

    assert list(target.data_dir.iterdir()) == []
    if target.database_url is not None:
        assert asyncio.run(schema.run(target.url, shape.describe)) == frozenset()


def test_a_file_that_was_packed_anew_with_something_else_in_it_is_damaged(small: bytes, tmp_path: Path) -> None:
    text = gzip.decompress(small)
    assert text.count(b'"made_at":"now"') == 1
    (tmp_path / "state").write_bytes(gzip.compress(text.replace(b'"made_at":"now"', b'"made_at":"new"')))
    with pytest.raises(Misconfigured, match="damaged"):
        state.read(tmp_path / "state")


@pytest.mark.parametrize("revision", ["0001", "0004", "0007"])
def test_a_state_of_an_earlier_schema_is_brought_back_as_it_was_and_then_migrated(
    tmp_path: Path, target: Settings, revision: str
) -> None:
    def make(connection: Connection) -> dict[str, list[dict[str, object]]]:
        _fill(connection, revision)
        return old_dump(connection)

    old = Settings(data_dir=tmp_path)
    was = asyncio.run(schema.run(old.url, make))
    asyncio.run(state.back_up(old, {}, tmp_path / "state", "now", quiet))
    asyncio.run(state.restore(target, tmp_path / "state", quiet))

    assert asyncio.run(schema.run(target.url, old_dump)) == was
    assert asyncio.run(schema.prepare(target.url)) == revision


def test_after_the_control_machine_burned_its_guests_are_found_and_taken_in_again(tmp_path: Path) -> None:
    """The simulated host is a file of its own: it outlives the machine that vpsd was on."""
    vpsd = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    try:
        vpsd.start()
        kept = vpsd.until_status(vpsd.create("kept")["id"], "active")
        done = vpsd.run("state", "backup", str(tmp_path / "state"), "--json")
        assert done.returncode == 0, done.stderr
        later = vpsd.until_status(vpsd.create("later")["id"], "active")
        token = vpsd.token
        vpsd.kill()
        for path in vpsd.data.iterdir():
            if not path.name.startswith("simulator"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        done = vpsd.run("state", "restore", str(tmp_path / "state"))
        assert done.returncode == 0, done.stderr

        vpsd.start()
        assert vpsd.token == token
        found = vpsd.until_status(kept["id"], "active")
        assert {name: found[name] for name in ("uuid", "ip_address")} == {
            name: kept[name] for name in ("uuid", "ip_address")
        }
        assert [each["command"] for each in vpsd.operations(kept["id"])] == ["create"]
        findings = vpsd.run("check", "--json")
        assert findings.returncode == 1
        assert f"-{later['id']}" in findings.stdout
        assert f'-{kept["id"]}"' not in findings.stdout
        assert vpsd.create("next")["id"] > later["id"]
    finally:
        vpsd.discard()


def test_an_installation_moves_to_postgresql_and_finds_its_guests_again(postgres_url: str) -> None:
    vpsd = Vpsd(hypervisor="simulator", simulator_boot_seconds=0.05)
    try:
        vpsd.start()
        servers = [vpsd.until_status(vpsd.create(name)["id"], "active") for name in ("one", "two")]
        refused = vpsd.run("db", "import", database_url=postgres_url)
        assert (refused.returncode, "another vpsd works" in refused.stderr) == (1, True), refused.stderr
        vpsd.interrupt()

        done = vpsd.run("db", "import", "--json", database_url=postgres_url)
        assert done.returncode == 0, done.stderr
        moved = msgspec.json.decode(done.stdout)
        assert moved["rows"]["servers"] == 2
        assert not (vpsd.data / "vpsd.sqlite").exists()
        with sqlite3.connect(moved["file"]) as aside:
            assert aside.execute("SELECT count(*) FROM servers").fetchone() == (2,)
        again = vpsd.run("db", "import", "--from", moved["file"], database_url=postgres_url)
        assert (again.returncode, "empty database" in again.stderr) == (1, True), again.stderr
        assert Path(moved["file"]).exists()

        vpsd.environment |= {"VPSD_DATABASE_URL": postgres_url}
        vpsd.start()
        for server in servers:
            found = vpsd.until_status(server["id"], "active")
            assert found["uuid"] == server["uuid"]
            assert [each["command"] for each in vpsd.operations(server["id"])] == ["create"]
        assert vpsd.run_json("check") == []
        assert vpsd.create("three")["id"] == servers[-1]["id"] + 1
    finally:
        vpsd.discard()


def test_nothing_is_moved_without_a_target_or_a_source(tmp_path: Path, postgres_url: str) -> None:
    alone = environment(data_dir=tmp_path, hypervisor="simulator")
    assert "set VPSD_DATABASE_URL" in run("db", "import", environment=alone).stderr
    done = run("db", "import", environment={**alone, "VPSD_DATABASE_URL": postgres_url})
    assert (done.returncode, "there is no database" in done.stderr) == (1, True)
    assert asyncio.run(schema.run(postgres_url, shape.describe)) == frozenset()
