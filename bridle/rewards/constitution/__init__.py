"""A constitution: written principles by which a model criticises and revises its own answers."""
