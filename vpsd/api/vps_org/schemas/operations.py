"""What goes over the wire about operations."""

from typing import Annotated, cast

import msgspec
from msgspec import Meta

from vpsd.api.http.forms import Listing
from vpsd.core.clock import iso_utc, iso_utc_or_none
from vpsd.lifecycle import Command
from vpsd.operations.models import Operation, OperationStatus


class OperationBrief(msgspec.Struct):
    """The operation that a request has queued: the list of the server's operations tells how far it is."""

    id: int
    status: OperationStatus

    @classmethod
    def of(cls, operation: Operation | None) -> "OperationBrief | None":
        """From a row, if there is one."""
        return None if operation is None else cls(operation.id, OperationStatus(operation.status))


class OperationView(msgspec.Struct):
    """A piece of slow work on a server."""

    id: int
    uuid: str
    command: Command
    status: OperationStatus
    step: Annotated[str | None, Meta(description="The step that is being done or was done last")]
    progress: Annotated[float, Meta(description="From 0 to 1")]
    detail: Annotated[str | None, Meta(description="What is being done, or how it ended")]
    attempts: Annotated[int, Meta(description="How often a worker took it up")]
    error: Annotated[str | None, Meta(description="The last thing that went wrong")]
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, operation: Operation) -> "OperationView":
        """From a row."""
        return cls(
            operation.id,
            operation.uuid,
            cast("Command", operation.command),  # not `Command(…)`: a later vpsd's goes out as it is
            OperationStatus(operation.status),
            operation.step,
            round(operation.progress, 3),
            operation.detail,
            operation.attempts,
            operation.error,
            iso_utc(operation.created_at_ms),
            iso_utc_or_none(operation.started_at_ms),
            iso_utc_or_none(operation.finished_at_ms),
        )


class OperationList(Listing):
    """A page of operations."""

    results: list[OperationView]
