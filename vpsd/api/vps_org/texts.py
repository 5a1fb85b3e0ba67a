"""The words of this dialect: what errors and faults say by themselves, and the paths that lead further."""

from functools import singledispatch

from vpsd.backups.faults import NoSuchBackup, ServerIsDeleted
from vpsd.servers.faults import IsDeleted, IsProtected, UnknownSshKey


@singledispatch
def text(failure: object) -> str:
    """What an error or a fault says to customers; a kind that is not here says what the kind it is made of does."""
    return str(failure)


@text.register
def _(fault: UnknownSshKey) -> str:
    return f"{fault} List yours at /api/v1/ssh-keys/."


@text.register
def _(fault: NoSuchBackup) -> str:
    return f"{fault} List yours at /api/v1/{fault.noun}s/."


@text.register
def _(error: ServerIsDeleted) -> str:
    fields = f"{error.noun}_id {error.backup_id}"
    return f"The server {error.server_id} is deleted. Make a new one of it: POST /api/v1/servers/ with {fields}."


@text.register
def _(error: IsDeleted) -> str:
    return f"{str(error).removesuffix('.')}: POST /api/v1/servers/{error.server_id}/undelete/."


@text.register
def _(error: IsProtected) -> str:
    way = f'PATCH /api/v1/servers/{error.server_id}/ with {{"protected": false}}'
    return f"The server is protected: it cannot be deleted, rebuilt or restored. Lift that first: {way}."
