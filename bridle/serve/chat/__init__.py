"""The served chat: who a user is, which answers they get and compare, and what of that is kept."""
