"""A new database is a new cloud: none begins beside what an earlier one has left."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from vpsd import main
from vpsd.accounts import tokens
from vpsd.catalog import service
from vpsd.core import folder
from vpsd.core.context import OPERATOR, Transactions
from vpsd.errors import Misconfigured
from vpsd.migrations import schema
from vpsd.settings import Settings

GUEST = "vpsd-c0ffee00-7"


def _put(path: Path, content: str = "of an earlier cloud\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


TRACES: list[tuple[str, str]] = [
    ("token", "token {}/token"),
    ("vpsd.sqlite", "database {}/vpsd.sqlite"),
    ("vpsd.sqlite-wal", "database {}/vpsd.sqlite-wal"),
    (f"pool/{GUEST}.qcow2", "1 disks and seeds in {}/pool"),
    (f"pool/{GUEST}-seed.iso", "1 disks and seeds in {}/pool"),
    (f"elsewhere/{GUEST}.2.qcow2", "1 disks and seeds in {}/elsewhere"),
    (f"libvirt/etc/qemu/{GUEST}.xml", "1 guests of the libvirtd in {}/libvirt"),
    ("simulator.journal", "simulated host {}/simulator.journal"),
    ("simulator.sqlite", "simulated host {}/simulator.journal"),
    ("backups/vpsd-c0ffee00/servers/manifest", "backups in {}/backups"),
]
NO_TRACES = {
    "catalog.toml": None,
    "backup.key": "00" * 32,
    "images/manifest.json": "{}",
    "libvirt/kind": "own\n",
    "simulator.journal": '{"vpsd-simulator":1,"snapshot_bytes":0}\n',
    "vpsd.lock": "",
}


@pytest.fixture
def settings(empty_url: str, tmp_path: Path) -> Settings:
    """Of a vpsd with a new database, of either kind."""
    return Settings(data_dir=tmp_path, database_url=empty_url, pool_dir=tmp_path / "elsewhere", hypervisor="simulator")


async def _open(settings: Settings, *, new_cloud: bool = False) -> str | None:
    """Begin; the first token."""
    async with main.open_transactions(settings, new_cloud=new_cloud) as transactions:
        return await main.first_token(transactions)


def _files(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "said"), TRACES)
async def test_beside_an_earlier_clouds_traces_no_new_one_begins(settings: Settings, name: str, said: str) -> None:
    data = settings.data_dir
    _put(data / name, "header\nof an earlier cloud\n")
    before = _files(data)
    with pytest.raises(Misconfigured) as refused:
        await _open(settings)
    assert f"an earlier cloud's {said.format(data)}. " in str(refused.value)
    assert "vpsd up --new-cloud" in str(refused.value)
    after = _files(data)
    after.pop("old.sqlite.lock", None)
    assert after == before
    with pytest.raises(Misconfigured):  # nor does the next try
        await _open(settings)


async def test_everything_that_was_found_is_said(settings: Settings) -> None:
    for name, _ in TRACES:
        _put(settings.data_dir / name, "header\nof an earlier cloud\n")
    with pytest.raises(Misconfigured) as refused:
        await _open(settings)
    for _, said in TRACES:
        assert said.format(settings.data_dir).removeprefix("1 ") in str(refused.value)
    assert f"2 disks and seeds in {settings.data_dir}/pool" in str(refused.value)


async def test_the_log_of_a_database_that_is_gone_is_kept_for_it(tmp_path: Path) -> None:
    log = tmp_path / "old.sqlite-wal"
    _put(log)  # SQLite would delete it with the first look at a new database
    settings = Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/old.sqlite", hypervisor="simulator")
    with pytest.raises(Misconfigured, match=f"database {log}"):
        await _open(settings)
    assert log.exists()


async def test_what_an_operator_puts_there_beforehand_is_no_trace(settings: Settings) -> None:
    for name, content in NO_TRACES.items():
        _put(settings.data_dir / name, service.default_text() if content is None else content)
    token = await _open(settings)
    assert token is not None
    assert (settings.data_dir / "token").read_text() == f"{token}\n"
    assert await _open(settings) is None  # by now the token is its own


@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: sqlite3.connect(path).execute("VACUUM")])
async def test_an_empty_database_is_a_new_one(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "vpsd.sqlite")
    _put(tmp_path / "token")
    with pytest.raises(Misconfigured, match="token"):
        await _open(Settings(data_dir=tmp_path, hypervisor="simulator"))


async def test_a_new_cloud_that_is_asked_for_keeps_the_old_one(settings: Settings) -> None:
    data = settings.data_dir
    for name, _ in TRACES:
        _put(data / name, f"header\nof {name}\n")
    _put(data / "token.1", "of a cloud before that\n")
    before = _files(data)
    token = await _open(settings, new_cloud=True)
    after = _files(data)
    assert after.pop("token") == f"{token}\n".encode()
    assert after["token.2"] == before.pop("token")
    assert before.items() <= after.items()
    with pytest.raises(Misconfigured, match="leave --new-cloud out"):
        await _open(settings, new_cloud=True)
    assert await _open(settings) is None


async def test_a_database_without_tokens_never_takes_the_place_of_a_token(settings: Settings) -> None:
    async with main.open_transactions(settings):
        pass
    _put(settings.data_dir / "token")
    with pytest.raises(Misconfigured, match=r"the database has no token, and .*/token is one of another cloud"):
        await _open(settings)
    assert (settings.data_dir / "token").read_text() == "of an earlier cloud\n"


async def _end(transactions: Transactions, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Have the first start end in the middle."""

    def write(path: Path, text: str) -> None:
        path.write_text(text)
        if at == "before the commit":
            raise SystemExit

    def rename(*_: Path) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(main, "write_private", write)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(SystemExit):
            await main.first_token(transactions)


@pytest.mark.parametrize("at", ["before the commit", "after it"])
async def test_a_first_start_that_ended_in_the_middle_is_made_up_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    async with main.open_transactions(settings) as transactions:
        await _end(transactions, monkeypatch, at)
        assert not (settings.data_dir / "token").exists()
        token = await main.first_token(transactions)
        assert token is not None
        assert (settings.data_dir / "token").read_text() == f"{token}\n"
        async with transactions.read(OPERATOR) as ctx:
            assert (await tokens.authenticate(ctx, token, None, None)).caller.permissions == {"*:*"}
        assert await main.first_token(transactions) is None
        (settings.data_dir / ".token.made").write_text("vps_of-an-earlier-try\n")
        assert await main.first_token(transactions) is None
        assert (settings.data_dir / "token").read_text() == f"{token}\n"
    assert sorted(path.name for path in settings.data_dir.glob(".*")) == []


async def test_two_that_begin_at_once_do_not_take_each_other_for_an_earlier_cloud(settings: Settings) -> None:
    async def begin(number: int) -> str | None:
        came_from = await schema.prepare(settings.url, lambda: folder.refuse_traces(settings))
        _put(settings.data_dir / "token", str(number))
        return came_from

    assert sorted(map(str, await asyncio.gather(*map(begin, range(3))))) == ["None", "None", "nothing"]
