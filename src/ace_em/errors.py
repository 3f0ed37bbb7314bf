"""The two ways a run ends badly on purpose."""


class InputError(Exception):
    """The input or an option is wrong; the command line prints the message and exits with code 2.

    The message is one line that names the file, the row or column, what was found and what is expected.
    """


class Diverged(Exception):
    """Training diverged: the loss was NaN or infinite after the allowed restarts. The message says what to try."""


def in_words(error: Exception) -> str:
    """What a user is told of an error: our own message or the system's, never the text of a library."""
    if isinstance(error, InputError):
        return str(error)
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) and error.strerror else "cannot be read: damaged"


def option(name: str) -> str:
    """A setting as it is typed: ``--final-box`` for ``final_box``."""
    return "--" + name.replace("_", "-")
