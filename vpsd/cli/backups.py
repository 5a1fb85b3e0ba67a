"""Backups and snapshots of all accounts, as the operator sees them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.backups import commands, damage, marks, queries
from vpsd.backups.keys import new_key
from vpsd.backups.marks import BackupTarget
from vpsd.backups.models import Backup, Kind
from vpsd.backups.repository import Repository, VerifyResult
from vpsd.backups.targets import TargetNotThere
from vpsd.cli.output import print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, transactions, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.units import MIB
from vpsd.errors import Misconfigured, NotFound, Unavailable, Unusable, VpsdError
from vpsd.servers import queries as servers

app = typer.Typer(no_args_is_help=True, help="Backups and snapshots of all accounts.")
target_app = typer.Typer(help="Where backups are kept: the targets that were ever used.")
app.add_typer(target_app, name="target")


@app.command("list")
@run_async
async def list_backups(json: Json = False) -> None:
    """List all backups and snapshots that take up space on a target. Example: `vpsd backup list --json`.

    `vpsd backup verify` checks that they can be read.
    """
    async with reading() as ctx:
        known = {target.mark: target for target in await marks.list_targets(ctx)}
        found = [_fields(backup, known.get(backup.target or "")) for backup in await queries.present(ctx)]
    columns = ("id", "kind", "server_id", "status", "made", "expires", "disk_mb", "sent_mb", "target", "error")
    print_list(json, found, columns, "There are no backups.")


def _fields(backup: Backup, target: BackupTarget | None) -> dict[str, Any]:
    return {
        "id": backup.id,
        "uuid": backup.uuid,
        "account_id": backup.account_id,
        "server_id": backup.server_id,
        "kind": backup.kind,
        "status": backup.status if backup.deleted_at_ms is None else "deleted",
        "made": iso_utc(backup.created_at_ms),
        "expires": iso_utc_or_none(backup.expires_at_ms),
        "incremental": backup.incremental,
        "consistent": backup.frozen,
        "paused_ms": backup.frozen_ms,
        "disk_mb": None if backup.size_bytes is None else -(-backup.size_bytes // MIB),
        "sent_mb": None if backup.sent_bytes is None else round(backup.sent_bytes / MIB, 2),
        "target": backup.target if target is None else target.locations[0],
        "target_name": None if target is None else target.name,
        "key_id": backup.key_id,
        "error": backup.error,
    }


@app.command()
@run_async
async def verify(
    backup_id: Annotated[int | None, typer.Argument(help="Id of a backup or snapshot; by default, all.")] = None,
    json: Json = False,
) -> None:
    """Read backups from the target in full, and compare them with their checksums.

    One that is damaged is marked, and not restored any more; the next backup stores anew what it can, and one that is
    found whole again loses the mark. Exit status 1 if one is damaged. Example: `vpsd backup verify 12`. The only
    complete test is to create a server from a backup.
    """
    async with transactions() as opened:
        repository = await _repository(opened)
        mark = await marks.identify(opened, repository)
        async with opened.read() as ctx:
            names = {target.mark: target.name for target in await marks.list_targets(ctx)}
            found = [backup for backup in await queries.stored(ctx) if backup_id in (None, backup.id)]
        if backup_id is not None and not found:
            raise NotFound("completed backup or snapshot", backup_id)
        results = []
        for backup in found:
            read, error = VerifyResult(0, 0), None
            try:
                read = await _verify(opened, repository, backup, mark, names)
            except TargetNotThere:
                raise
            except (Unavailable, Unusable) as damage:
                error = str(damage)
            results.append(
                {"id": backup.id, "kind": backup.kind, "chunks": read.chunks, "bytes": read.size_bytes, "error": error}
            )
    if json:
        print_json(results)
    else:
        rows = [[*list(result.values())[:4], result["error"] or "intact"] for result in results]
        print_rows(("id", "kind", "chunks", "bytes", "result"), rows, "There are no backups.")
    if any(result["error"] for result in results):
        raise typer.Exit(1)


async def _repository(opened: Transactions) -> Repository:
    async with opened.write() as ctx:
        return main.make_repository(ctx.settings, await accounts.instance(ctx))


async def _verify(
    opened: Transactions, repository: Repository, backup: queries.StoredBackup, mark: str | None, names: dict[str, str]
) -> VerifyResult:
    if backup.target != mark:
        raise Unusable(
            f"it is on the target {names.get(backup.target or '', backup.target)}, and vpsd is configured for "
            f"{repository.location}"
        )
    try:
        return await damage.verify(opened, repository, backup)
    except Unusable:
        await repository.check_mark(mark)  # what is not mounted is nothing else
        raise


@target_app.callback(invoke_without_command=True)
@run_async
async def target(context: typer.Context, json: Json = False) -> None:
    """Show where backups are kept: each target with its name, its mark, and whether it is there.

    A target is known by the mark that lies on it (`vpsd-target.json`), so it may move: set VPSD_BACKUP_DIR or
    VPSD_BACKUP_S3 to its new place. Example: `vpsd backup target --json`.
    """
    if context.invoked_subcommand is not None:
        return
    async with transactions() as opened:
        repository = await _repository(opened)
        mark, error = None, None
        try:
            mark = await marks.identify(opened, repository)
        except VpsdError as reason:
            error = str(reason)
        async with opened.read() as ctx:
            known = await marks.list_targets(ctx)
            counts = {one.mark: await marks.count_backups(ctx, one) for one in known}
    former = None if mark else marks.last_at(known, repository.location)
    found = [_target_fields(one, counts[one.mark], repository, mark, former) for one in known]
    if mark is None and former is None:
        unused = {"name": None, "mark": None, "location": repository.location, "backups": 0, "made": None, "seen": None}
        found.append({**unused, "state": repository.status.status, "error": error})
    for fields in found:
        fields["error"] = error if fields["state"] in ("missing", "unavailable") else None
    print_list(json, found, ("name", "mark", "location", "backups", "seen", "state", "error"), "")


def _target_fields(
    one: BackupTarget, count: int, repository: Repository, mark: str | None, former: BackupTarget | None
) -> dict[str, Any]:
    here = "in use" if one.mark == mark else None
    return {
        "name": one.name,
        "mark": one.mark,
        "location": one.locations[0],
        "backups": count,
        "made": iso_utc(one.created_at_ms),
        "seen": iso_utc(one.seen_at_ms),
        "state": here or (repository.status.status if one is former else "elsewhere"),
    }


@target_app.command("rename")
@run_async
async def rename_target(
    name: Annotated[str, typer.Argument(help="Its new name: letters, digits, dots, hyphens and underscores.")],
    of: Annotated[
        str | None, typer.Option("--target", help="The name or mark of the target; by default, the one in use.")
    ] = None,
    json: Json = False,
) -> None:
    """Call a target something else. Example: `vpsd backup target rename offsite`."""
    async with transactions() as opened:
        repository = await _repository(opened)
        async with opened.write(OPERATOR) as ctx:
            if of is None:
                here = marks.last_at(await marks.list_targets(ctx), repository.location)
                if here is None:
                    raise Unusable(f"No backup was stored in {repository.location} yet, so it has no name.")
                of = here.mark
            await marks.rename(ctx, of, name)
    print_result(json, {"name": name}, f"The target is called {name}.")


@target_app.command()
@run_async
async def adopt(
    new: Annotated[bool, typer.Option("--new", help="It may be empty: a target that was never used.")] = False,
    json: Json = False,
) -> None:
    """Take what is at the configured place as the backups' target, although it is not the one that was there.

    One that has lost its mark is known by the backups on it, and gets it again. Backups on other targets stay what they
    are, and can be restored when their target is configured again. Example: `vpsd backup target adopt --new`.
    """
    async with transactions() as opened:
        repository = await _repository(opened)
        mark = await marks.adopt(opened, repository, new=new)
        async with opened.read() as ctx:
            name = next(one.name for one in await marks.list_targets(ctx) if one.mark == mark)
    text = f"{repository.location} is the target {name} from now on."
    print_result(json, {"name": name, "mark": mark, "location": repository.location}, text)


@app.command()
@run_async
async def delete(
    backup_id: Annotated[int, typer.Argument(help="Id of a backup or snapshot, from `vpsd backup list`.")],
    json: Json = False,
) -> None:
    """Delete an account's backup or snapshot for good, such as a damaged one. Example: `vpsd backup delete 12`.

    While vpsd runs, what no other backup needs is removed from the target within seconds.
    """
    async with writing() as ctx:
        backup = await queries.get_any(ctx, backup_id)
        await commands.delete(ctx.in_account(backup.account_id), (Kind(backup.kind),), backup_id)
    print_result(json, {"id": backup_id}, f"Deleted {backup.kind} {backup_id}.")


@app.command()
@run_async
async def now(
    server_id: Annotated[int, typer.Argument(help="Id of the server, from `vpsd server list`.")], json: Json = False
) -> None:
    """Make a server's daily backup now, not in the backup window. Example: `vpsd backup now 12`.

    Its customer must have enabled backups. The next one is made in the window again.
    """
    async with writing() as ctx:
        await commands.make_daily_due(ctx.in_account(await servers.account_of(ctx, server_id)), server_id)
    text = f"The daily backup of server {server_id} begins as soon as the server is active or stopped."
    print_result(json, {"server_id": server_id}, text)


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="The file to create; an existing one is not overwritten.")],
    json: Json = False,
) -> None:
    """Create an encryption key for backups, in a file that only its owner can read.

    Example: `vpsd backup key /etc/vpsd/backup.key`, then set VPSD_BACKUP_KEY_FILE to it. Keep a copy elsewhere: without
    the key nobody can read the backups.
    """
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(new_key() + "\n")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be written: {error.strerror}") from error
    text = f"Wrote a new key to {file}. Set VPSD_BACKUP_KEY_FILE={file}, and keep a copy of the file elsewhere."
    print_result(json, {"file": str(file)}, text)
