"""What this dialect says of itself in its description."""

from vpsd.api.http.errors import Problem
from vpsd.api.http.openapi import Description
from vpsd.api.vps_org.examples import ANSWERS, BODIES, DRY_RUN
from vpsd.api.vps_org.texts import text
from vpsd.lifecycle import Command, Status
from vpsd.servers.faults import CommandRefused, IsProtected

_PROBLEMS = {
    problem.code: problem
    for problem in (
        Problem("Send your token with the request: Authorization: Bearer YOUR_API_TOKEN", "unauthenticated"),
        Problem("There is no server 12345.", "not_found"),
        Problem(
            "A Standard VPS costs 10.00 USD a month. The balance is 0.10 and has to cover all your servers with this "
            "one for 24 hours (0.357143): 0.257143 USD are missing. Add credit, or delete a server.",
            "payment_required",
        ),
        Problem(text(IsProtected(12345)), "protected"),
        Problem("This token lacks the permission servers:*.", "forbidden"),
        Problem(
            "The first request with this Idempotency-Key is still being carried out. Ask again in a moment.",
            "still_running",
        ),
        Problem(
            "This Idempotency-Key came with another request before. Use a new key for a new request.",
            "idempotency_key_reused",
        ),
        Problem("This token has sent too many requests. Wait 12 seconds.", "too_many_requests"),
        Problem(
            "No host has room for a Standard VPS now: too little memory_mb. Choose a smaller plan, or try later.",
            "unavailable",
        ),
        Problem("The body is too large; the limit is 262144 bytes.", "too_large"),
        Problem("Send the body as JSON, with the header Content-Type: application/json.", "unsupported_media_type"),
        Problem("The body is not valid JSON: JSON is malformed: expected ',' or '}' (byte 24).", "bad_request"),
        Problem(str(CommandRefused(Status.ACTIVE, Command.START)), "wrong_status"),
        Problem("Another operation (create) on this server is under way; try again when it is done.", "busy"),
    )
}

DESCRIPTION = Description(
    about={
        "title": "vpsd",
        "version": "1",
        "summary": "A VPS cloud that anyone can run on their own machines",
        "description": "Send your token with every request: `Authorization: Bearer YOUR_API_TOKEN`. Bodies are JSON, "
        "times are UTC, memory is in MB, storage and bandwidth in GB, money is in credits. A request only begins slow "
        "work: the server's `status` tells when it is done, its operations how far it has come. Paths without the "
        "trailing slash work too.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    tags={
        "Servers": "Create, change, start, stop and delete virtual servers.",
        "Backups": "Copies of servers, made every day or when asked for, to go back to or to begin from.",
        "Snapshots": "Copies of servers by name, a few to a server.",
        "SSH keys": "Public keys, to be installed on servers that are made with them.",
        "Catalogue": "What can be ordered.",
        "Account": "Who one is, tokens, events, and money.",
        "Service": "vpsd itself.",
    },
    bodies=BODIES,
    answers=ANSWERS,
    dry_run=DRY_RUN,
    problems=_PROBLEMS,
)
