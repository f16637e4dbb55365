"""Alembic migrations of the store, run by `bridle.feedback.database.migrate`; each one follows the last."""
