"""Errors with a message for the user."""


class InputError(Exception):
    """Wrong input or option; the command line prints the message and exits with code 2.

    The message is one line that names the file, the row or column, the value found and the expected value.
    """


class Diverged(Exception):
    """Training diverged: the loss was NaN or infinite after the allowed restarts. The message suggests other settings."""


def in_words(error: Exception) -> str:
    """Message for the user: that of ace-em or of the operating system, not of a library."""
    if isinstance(error, InputError):
        return str(error)
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) and error.strerror else "cannot be read: damaged"


def option(name: str) -> str:
    """Command-line option of a setting: ``--final-box`` for ``final_box``."""
    return "--" + name.replace("_", "-")
