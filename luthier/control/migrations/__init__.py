"""Schema history, by Alembic."""
