"""What this machine can do, and how vpsd is configured."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import msgspec
import typer

from vpsd import __version__, main
from vpsd.backups import marks
from vpsd.backups.marks import BackupTarget
from vpsd.cli.output import console, print_json
from vpsd.cli.run import Json, read_settings
from vpsd.cli.texts import text
from vpsd.core import db, folder
from vpsd.core.clock import SystemClock
from vpsd.errors import VpsdError
from vpsd.hypervisor.protocol import HostFacts
from vpsd.images.programs import require
from vpsd.images.store import ImageStore
from vpsd.settings import Settings


class Report(msgspec.Struct):
    """What the doctor found."""

    version: str
    settings: dict[str, str | None]
    host: HostFacts | None
    problems: list[str]
    images: list[str]
    backups: str = ""


def doctor(json: Json = False) -> None:
    """Show which libvirt and virtualization are used and why, what is missing (backups' target too), and every setting.

    Does not change the database. Exit status 1 if servers cannot be created. Example:
    `VPSD_VIRT_TYPE=qemu vpsd doctor` shows what emulation would be like.
    """
    settings = read_settings()
    report = Report(__version__, _values(settings), None, [], [])
    report.images = [image.key for image in ImageStore(main.image_folder(settings)).available()]
    if open_to_others := folder.exposed(settings):
        names = ", ".join(map(str, open_to_others))
        report.problems.append(f"other users can read or change {names}: the next `vpsd up` makes them private")
    try:
        report.host = asyncio.run(_facts(settings))
    except VpsdError as error:
        report.problems.append(f"no servers can be created: {error}")
    try:
        require("qemu-img", "mke2fs", "mmdebstrap", "zstd")
    except VpsdError as error:
        report.problems.append(f"some images cannot be built: {error}")
    try:
        report.backups = asyncio.run(_backups(settings))
    except VpsdError as error:
        report.problems.append(f"no backups can be made: {text(error)}")
    if settings.guests_pass_for_a_proxy:
        report.problems.append(
            "guests can pretend to be the proxy: they reach vpsd from 127.0.0.1, too. See docs/proxy.md, Beside guests"
        )
    if json:
        print_json(report)
    else:
        _print(report)
    if report.host is None:
        raise typer.Exit(1)


async def _facts(settings: Settings) -> HostFacts:
    folder.prepare(settings)
    hypervisor = main.make_hypervisor(settings, "00000000", SystemClock())
    try:
        return await hypervisor.facts()
    finally:
        await hypervisor.close()


async def _backups(settings: Settings) -> str:
    """Where backups are kept, and as which target that is known."""
    repository = main.make_repository(settings, "00000000")
    mark, known = await repository.read_mark(), await _known_targets(settings)
    this = next((one for one in known if one.mark == mark), None)
    former = marks.last_at(known, repository.location)
    if this is None and former is not None:
        raise marks.not_there(repository.location, mark, former)
    said = "not used yet" if mark is None else "marked" if this is None else f"the target {this.name}"
    return f"{repository.location}: {said}"


async def _known_targets(settings: Settings) -> Sequence[BackupTarget]:
    """Those of the database; none where there is no database yet, or one that the next start migrates."""
    if settings.database_url is None and not Path(db.sqlite_path(settings.url)).exists():
        return ()
    database = await db.connect(settings.url)
    try:
        async with database.read() as tx:
            return await marks.read_targets(tx)
    except (sqlite3.Error, asyncpg.PostgresError):
        return ()
    finally:
        await database.close()


def _values(settings: Settings) -> dict[str, str | None]:
    values = msgspec.structs.asdict(settings)
    if settings.database_url is not None:
        values["database_url"] = "postgresql://… (set; it may hold a password)"
    return {name: None if value is None else str(value) for name, value in values.items()}


def _print(report: Report) -> None:
    console.print(f"vpsd {report.version}", style="bold")
    if report.host is not None:
        host = report.host
        console.print(f"hypervisor   {host.driver} {host.version} at {host.uri}", markup=False)
        console.print(f"guests       {host.virt_type}: {host.virt_reason}", markup=False)
        console.print(f"host         {host.cpus} CPUs, {host.memory_mb} MB of memory")
    console.print(f"images       {', '.join(report.images) or 'none yet'}", markup=False)
    console.print(f"backups      {report.backups or 'see below'}", markup=False)
    for problem in report.problems:
        console.print(f"problem      {problem}", markup=False, style="bold red")
    console.print("\nsettings (VPSD_… variables)", style="bold")
    types = msgspec.inspect.type_info(Settings)
    assert isinstance(types, msgspec.inspect.StructType)
    for field in types.fields:
        value = report.settings[field.name]
        console.print(f"VPSD_{field.name.upper()}={value or ''}", markup=False)
        if isinstance(field.type, msgspec.inspect.Metadata) and field.type.extra_json_schema:
            console.print(f"    {field.type.extra_json_schema.get('description', '')}", markup=False)
