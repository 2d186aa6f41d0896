"""Runs the migrations on the connection that Database.migrate hands over, or on a URL given as `-x url=...`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine

import luthier.control.tables  # noqa: F401  # pyright: ignore[reportUnusedImport]  (every table, so that Alembic can compare)
from luthier.control.db import Table

connection = context.config.attributes.get("connection")
if connection is None:
    connection = create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect()

context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
