"""Errors that a user can mend: scripts print them as one line and exit with code 2."""


class UsageError(ValueError):
    """Something that was asked for does not exist or does not fit; the message says what was expected and what came."""
