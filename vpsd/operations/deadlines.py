"""When operations are given up, in SQL."""

from sqlalchemy import BigInteger, bindparam, case, literal

from vpsd.core.units import MINUTE_MS
from vpsd.lifecycle import RULES
from vpsd.operations.models import operations

_MINUTES = {command: rule.minutes for command, rule in RULES.items() if rule.minutes is not None}

DEADLINE = bindparam("now_ms", type_=BigInteger) + case(
    {command.value: literal(minutes * MINUTE_MS, BigInteger) for command, minutes in _MINUTES.items()},
    value=operations.c.command,
    else_=literal(0, BigInteger),
)
"""The deadline of an operation whose time begins now; only of one that has any."""
