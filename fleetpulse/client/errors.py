"""What keeps a command from its work."""


class AskError(Exception):
    """A service could not be asked, or refused; the message is one line for people."""
