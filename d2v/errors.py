"""Marker of the errors that a user can mend while a command runs."""

from __future__ import annotations


class UserError(Exception):
    """Base class of errors in the data, the values or the machine that only the user can mend.

    The command line prints their message without a stack trace, however late in a run they come.
    """
