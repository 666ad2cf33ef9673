"""The exception tree: what a user can mend, and what only we can.

An error message has four parts in this order: where (file, line, key), what was found, what is allowed, what to do.
Entry scripts map `InputError` and `ArtefactError` to exit status 2 and print the message without a traceback;
anything else is our bug and keeps its traceback (status 1).
"""


class RefusalError(Exception):
    """Base class of every error this project raises on purpose."""


class InputError(RefusalError):
    """The configuration, a data file or a model folder is wrong; the user can mend it (exit status 2)."""


class ArtefactError(RefusalError):
    """A result file is missing, stale or corrupt; the message names the command that makes it (exit status 2)."""
