"""What this dialect says of itself in its description."""

from vpsd import errors
from vpsd.api.http.authentication import LacksPermission
from vpsd.api.http.context import LimitReached, NoToken
from vpsd.api.http.errors import CODES, TOO_LARGE, Problem
from vpsd.api.http.openapi import ApiDescription
from vpsd.api.http.refusals import URL_TOO_LONG
from vpsd.api.http.requests import NOT_JSON, WRONG_TYPE
from vpsd.api.vps_org.examples import ANSWERS, BODIES, DRY_RUN, STANDARD
from vpsd.api.vps_org.texts import text
from vpsd.billing.credit import NotCovered
from vpsd.lifecycle import Command, Status
from vpsd.operations.service import UnderWay
from vpsd.servers.faults import CommandRefused, IsProtected, NoCapacity, StorageFull
from vpsd.settings import Settings

# As they are sent, in the words of the kinds themselves.
_ERRORS: tuple[errors.VpsdError, ...] = (
    NoToken(),
    errors.NotFound("server", 12345),
    NotCovered(STANDARD, Settings(), have=100_000, needed=357_143, missing=257_143),
    IsProtected(12345),
    LacksPermission("servers:*"),
    errors.StillRunning(),
    errors.KeyReused(),
    LimitReached("token", 12),
    errors.DatabaseUnavailable("unavailable", ""),
    errors.OutcomeUnknown("unavailable", ""),
    NoCapacity("Standard VPS", ["memory_mb"]),
    StorageFull(),
    CommandRefused(Status.ACTIVE, Command.START),
    UnderWay(Command.CREATE),
)
_OF_HTTP = {413: TOO_LARGE, 414: URL_TOO_LONG.detail, 415: WRONG_TYPE}
_OF_HTTP |= {400: NOT_JSON.format("JSON is malformed: expected ',' or '}' (byte 24)")}
_PROBLEMS = {error.code: Problem(text(error), error.code) for error in _ERRORS}
_PROBLEMS |= {CODES[status]: Problem(detail, CODES[status]) for status, detail in _OF_HTTP.items()}

DESCRIPTION = ApiDescription(
    about={
        "title": "vpsd",
        "version": "1",
        "summary": "A VPS cloud that anyone can run on their own machines",
        "description": "Send your token with every request: `Authorization: Bearer YOUR_API_TOKEN`. Bodies are JSON, "
        "times are UTC, memory is in MB, storage and bandwidth in GB, money is in credits. A request only begins slow "
        "work: the server's `status` tells when it is done, its operations how far it has come. Paths without the "
        "trailing slash work too. Lists come in pages: follow `next` until it is null; where it begins with a slash, "
        "it is a path on the host that you asked. Parameters and fields that are unknown or sent twice are refused.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    tags={
        "Servers": "Create, change, start, stop and delete virtual servers.",
        "Backups": "Copies of servers, made every day or when asked for, to go back to or to begin from.",
        "Snapshots": "Copies of servers by name, a few to a server.",
        "Placement groups": "Servers that are kept on different hosts.",
        "SSH keys": "Public keys, to be installed on servers that are made with them.",
        "Catalogue": "What can be ordered.",
        "Account": "Who one is, tokens, events, and money.",
        "Operator": "For whoever runs vpsd: servers of every account, with the permission `operator:*`.",
        "Service": "vpsd itself.",
    },
    bodies=BODIES,
    answers=ANSWERS,
    dry_run=DRY_RUN,
    problems=_PROBLEMS,
    names={
        "Command": "OperationCommand",
        "Me": "TokenOwner",
        "NamedServer": "UsageServer",
        "OfServer": "BackupServer",
        "OsBrief": "OperatingSystemBrief",
        "Placement": "DryRunPlacement",
        "Power": "PowerAction",
        "Price": "DryRunPrice",
        "Status": "ServerStatus",
        "Usage": "AccountUsage",
        "UsageOfServer": "ServerUsage",
    },
)
