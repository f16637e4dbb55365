"""People who sign in: their accounts, sessions, tokens and invitations."""
