"""Backups and snapshots of all accounts, as the operator sees them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.backups import commands, queries
from vpsd.backups.models import Backup, Kind
from vpsd.backups.repository import VerifyResult, new_key
from vpsd.cli.output import print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, writing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.core.units import MIB
from vpsd.errors import Misconfigured, NotFound, Unavailable, Unusable
from vpsd.servers import queries as servers

app = typer.Typer(no_args_is_help=True, help="Backups and snapshots of all accounts.")


@app.command("list")
@run_async
async def list_backups(json: Json = False) -> None:
    """List all backups and snapshots that take up space on a target. Example: `vpsd backup list --json`.

    `vpsd backup verify` checks that they can be read.
    """
    async with reading() as ctx:
        found = [_fields(backup) for backup in await queries.present(ctx)]
    columns = ("id", "kind", "server_id", "status", "made", "expires", "disk_mb", "sent_mb", "target", "error")
    print_list(json, found, columns, "There are no backups.")


def _fields(backup: Backup) -> dict[str, Any]:
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
        "target": backup.target,
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

    Exit status 1 if one is damaged. Example: `vpsd backup verify 12`. The only complete test is to create a server
    from a backup.
    """
    async with writing() as ctx:
        repository = main.make_repository(ctx.settings, await accounts.instance(ctx))
        found = [backup for backup in await queries.stored(ctx) if backup_id in (None, backup.id)]
    if backup_id is not None and not found:
        raise NotFound("completed backup or snapshot", backup_id)
    results = []
    for backup in found:
        read, error = VerifyResult(0, 0), None
        try:
            repository.check_target(backup.target)
            read = await repository.verify(backup.ref)
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
