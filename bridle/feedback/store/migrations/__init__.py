"""Alembic migrations of the store, run by `bridle.feedback.store.database.migrate`; each one follows the last."""
