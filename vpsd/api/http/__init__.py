"""HTTP, whatever the dialect: tokens, limits, idempotency, errors, descriptions."""
