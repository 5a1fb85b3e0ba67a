"""The vpsd of the room `guests`, for what takes minutes: `make test-debian` runs it, `make test` does not."""

from tests.guests.conftest import host, vpsd  # noqa: F401
