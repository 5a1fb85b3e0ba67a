"""Run by alembic: migrates over the connection that `vpsd.migrations.schema` opened."""

from alembic import context

from vpsd.migrations.schema import all_tables

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=all_tables(), render_as_batch=True, transaction_per_migration=False
)
with context.begin_transaction():
    context.run_migrations()
