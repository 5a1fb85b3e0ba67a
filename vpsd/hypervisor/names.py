"""What things on a host are called. Every name begins with that of the server's guest, which belongs to one vpsd."""

import hashlib

_OPERATION_BITS = 31


def guest_name(instance: str, server_id: int) -> str:
    """The name of a server on the host; `instance` is the database's own id, eight hex digits."""
    return f"vpsd-{instance}-{server_id}"


def server_id_of(name: str) -> int:
    """The server that a guest, or a volume of a guest, is named after."""
    return int(guest_of(name).rpartition("-")[2])


def disk_generation(server_uuid: str, operation_uuid: str) -> int:
    """The number of the disk that an operation makes. It fits 63 bits, and no other disk ever has it.

    Not the operation's id: with an older copy of the database put back, ids are given out a second time.
    """
    return _digest(server_uuid) << _OPERATION_BITS | _digest(operation_uuid) >> 1


def _digest(uuid: str) -> int:
    return int(hashlib.sha256(uuid.encode()).hexdigest()[:8], 16)


def disk_name(guest: str, generation: int) -> str:
    """The name of a guest's disk: it says which server's, and which operation's.

    Older versions of vpsd named the first (0) like the guest, and one from a restore after the operation's id.
    """
    server, operation = divmod(generation, 1 << _OPERATION_BITS)
    if generation == 0:
        return guest
    return f"{guest}.{server:08x}-{operation:08x}" if server else f"{guest}.{operation}"


def guest_of(disk: str) -> str:
    """The guest that a disk is named after."""
    return disk.partition(".")[0]


def names_server(disk: str, server_uuid: str) -> bool | None:
    """Whether a disk's name says that it is that server's; None for one of an older vpsd, which says nothing."""
    suffix = disk.partition(".")[2]
    return suffix.startswith(f"{_digest(server_uuid):08x}-") if "-" in suffix else None
