"""HTTP, whatever the dialect: tokens, limits, idempotency, errors, descriptions.

All dialects share the shapes of errors, pages (`cursor`, `page`, `page_size`), `dry_run` and `Idempotency-Key`.
"""
