"""One file for each step of the schema. A step that was released is never edited: what changes is a new step.

A step that rebuilds `judgement` on SQLite must put its triggers back.
"""
