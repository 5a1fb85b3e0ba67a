"""Why a backup or snapshot cannot be made, used or deleted. `noun` is what people call it: backup or snapshot."""

from vpsd.errors import Busy, Fault, WrongStatus


class OneSource(Fault, frozen=True):
    """A new server is to begin with more than one thing; `fields` are what it can begin with."""

    fields: list[str]

    def __str__(self) -> str:
        return f"Give one of {', '.join(self.fields)}."


class NoSuchBackup(Fault, frozen=True):
    """The account has none with this id."""

    noun: str
    id: int

    def __str__(self) -> str:
        return f"There is no {self.noun} {self.id}."


class NotCompleted(Fault, frozen=True):
    """A server cannot be made from it: it is being made, or it failed."""

    noun: str
    id: int
    status: str

    def __str__(self) -> str:
        return f"The {self.noun} {self.id} is {self.status.replace('_', ' ')}. Choose a completed one."


class TooManyBackups(Fault, frozen=True):
    """The server has as many of this kind as it may have."""

    noun: str
    limit: int

    def __str__(self) -> str:
        manual = "manual " if self.noun == "backup" else ""
        return f"A server may have {self.limit} {manual}{self.noun}s. Delete one first."


class NoDiskYet(WrongStatus):
    """There is nothing to back up."""

    def __init__(self) -> None:
        super().__init__("The server has no disk yet. Wait until it is active.")


class BackupsNotEnabled(WrongStatus):
    """The server's owner has no automatic backups enabled."""

    def __init__(self, server_id: int) -> None:
        super().__init__(f"The server {server_id} has no backups enabled.")


class ServerIsDeleted(WrongStatus):
    """The server that a backup was made of is deleted: only a new one can be made from it."""

    def __init__(self, noun: str, backup_id: int, server_id: int) -> None:
        super().__init__(f"The server {server_id} is deleted. Create a new one from the {noun} {backup_id}.")
        self.noun, self.backup_id, self.server_id = noun, backup_id, server_id


class NotRestorable(WrongStatus):
    """It is still being made, or it failed (`error` says why)."""

    def __init__(self, noun: str, backup_id: int, error: str | None) -> None:
        super().__init__(
            f"The {noun} {backup_id} is still being made. Wait until it is completed."
            if error is None
            else f"The {noun} {backup_id} failed: {error} Choose another."
        )


class IsDamaged(WrongStatus):
    """The target has lost or changed some of it since."""

    def __init__(self, noun: str, backup_id: int) -> None:
        super().__init__(f"The {noun} {backup_id} is damaged: parts of it cannot be read any more. Choose another.")


class BackupInUse(Busy):
    """It is being made of a server, or a server is being restored or made from it."""

    def __init__(self, noun: str, backup_id: int, server_id: int) -> None:
        super().__init__(
            f"The {noun} {backup_id} is in use: it is being made of the server {server_id}, or that server from it. "
            "Try again when that is done, or delete that server."
        )
        self.server_id = server_id
