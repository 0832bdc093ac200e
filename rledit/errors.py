"""The base class of every error that a user can mend, for commands that show errors to people."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user gave cannot be used; the message says where, why and what would do.

    Commands print the message alone. Any other exception is a bug and keeps its traceback. Classes
    below it have a built-in exception as their second base, so that they are caught as one, too.
    """
