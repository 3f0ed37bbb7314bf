"""The two ways a run ends badly on purpose."""


class InputError(Exception):
    """The input or an option is wrong; the command line prints the message and exits with code 2.

    The message is one line that names the file, the row or column, what was found and what is expected.
    """


class Diverged(Exception):
    """A computation met numbers that are none, time and again, and was given up; the message says what to try."""


def option(name: str) -> str:
    """A setting as it is typed: ``--final-box`` for ``final_box``."""
    return "--" + name.replace("_", "-")
