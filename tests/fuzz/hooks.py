"""What schemathesis is told about vpsd: ids that exist, the token to leave alone, and which refusals are by design."""

import json
import os
import re
from typing import Any

import schemathesis

# Why a request that fits the description may be refused: by what is said of a field, or by a code.
BY_DESIGN = {
    r": There is no ": "Whether something exists no schema can tell.",
    r"^cursor: Send cursor or page, not both": "Said in words at both: lists are read either way.",
    r"^cursor: This is no cursor of this list": "A cursor comes out of an answer: what is in it is nobody's business.",
    r": NUL characters are not allowed": "PostgreSQL stores none; a pattern at every text would say nothing else.",
    r"^public_key: ": "What a public key is made of no pattern can say, nor which ones the account has.",
    r"^user_data: ": "What cloud-init takes no pattern can say.",
    r"^(name|hostname): .* reads as an IPv4 address": "Said in words at hostname; a pattern of it would be unreadable.",
    r"^name: Give 1 to 255 printable characters": "What can be printed is Unicode's to say.",
    r"^name: The account already has a placement group ": "Which names are taken the list tells.",
    r"^(os_id|plan_id): .* needs a disk of ": "Which system fits on which plan the lists tell.",
    r"^(plan_id|plan): The server has the plan .* already": "What a server is like, a schema cannot know.",
    r"^(plan_id|plan): A disk cannot shrink": "The same.",
    r"^server_id: A server may have \d+ ": "How many it has, neither.",
    r"^idempotency_key_reused$": "Nor which keys were used before.",
    r"^busy$": "One operation at a time; the published API answers 400.",
    r"^wrong_status$": "What a server can be told depends on what it does; 400 as well.",
}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let most ids be of something that exists."""
    return {name: _near(value) for name, value in path_parameters.items()} if path_parameters else path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The same for the ids in bodies."""
    if not isinstance(body, dict):
        return body
    return {name: _near(value) if name.endswith("_id") else value for name, value in body.items()}


def _near(value: Any) -> Any:
    usual = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
    return value % 12 + 1 if usual else value


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave the token alone that schemathesis itself uses: without it everything is a 401."""
    if case.operation.definition.raw.get("operationId") != "token_delete":
        return True
    return str((case.path_parameters or {}).get("token_id")) != os.environ["FUZZ_TOKEN_ID"]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let a chain of requests do without a key: with one the answer may be an old one, of what is gone since."""
    if case.meta.phase.name.value == "stateful" and case.meta.generation.mode.is_positive:
        case.headers.pop("Idempotency-Key", None)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure is one: not if it is a refusal by design."""
    if type(failure).__name__ != "RejectedPositiveData":
        return True
    return not all(any(re.search(known, said) for known in BY_DESIGN) for said in _messages(response.text))


def _messages(text: str) -> list[str]:
    said = json.loads(text)
    if "code" in said:
        return [said["code"]]
    return [f"{field}: {message}" for field, messages in said.items() for message in messages]
