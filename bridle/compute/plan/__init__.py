"""What a run needs, before anything is loaded: memory, arithmetic and what cards send each other, from a shape and the recipe alone
(docs/scaling.md). Nothing here loads torch."""
