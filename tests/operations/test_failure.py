"""What is said of an operation that went wrong."""

import pytest

from vpsd.errors import DatabaseUnavailable, OutcomeUnknown, Unavailable
from vpsd.operations.failure import Failure


@pytest.mark.parametrize("kind", [DatabaseUnavailable, OutcomeUnknown])
def test_advice_for_senders_of_requests_is_not_told_of_operations(kind: type[DatabaseUnavailable]) -> None:
    failure = Failure.of(kind("unavailable", "connection refused"))
    assert failure.error == "The database did not answer."
    assert failure.cause == "The database did not answer. connection refused"


def test_customers_are_told_nothing_of_the_operators_and_the_operator_everything() -> None:
    failure = Failure.of(Unavailable("libvirtd at /run/libvirt does not answer"))
    assert (failure.error, failure.cause) == (Unavailable.public, "libvirtd at /run/libvirt does not answer")
