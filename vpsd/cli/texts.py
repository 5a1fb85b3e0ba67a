"""Failures on the command line: the domain's text, and the command that helps."""

from vpsd.errors import DatabaseUnavailable, NotFound, VpsdError

_LISTS = {
    "account": "`vpsd account list` shows them",
    "person": "`vpsd account show ACCOUNT` lists who belongs to an account",
    "valid token": "`vpsd token list` shows them",
    "operating system": "`vpsd catalog show` lists them",
    "server": "`vpsd server list` lists them",
    "backup or snapshot": "`vpsd backup list` lists them",
    "completed backup or snapshot": "`vpsd backup list` lists them",
}


def text(error: VpsdError) -> str:
    """What went wrong and what to do, in one line."""
    if isinstance(error, NotFound) and error.noun in _LISTS:
        return f"{str(error).removesuffix('.')}; {_LISTS[error.noun]}."
    if isinstance(error, DatabaseUnavailable):
        return f"{error} The database is {error.problem}: {error.reason}"
    return str(error)
