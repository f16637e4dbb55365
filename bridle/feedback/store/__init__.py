"""The store of judgements: tables, rows, and the database that holds them."""
