"""Who may do what: keys, users with passwords, and their sessions."""
