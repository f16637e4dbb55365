"""The pages of owners and adjudicators: studies, items, settings, disagreements, chains of revision."""
