"""Checks that could hang, and programs that others wrote, in processes that are killed and reaped."""
