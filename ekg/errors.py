"""The one kind of error that a caller can cause, and what is shown of others."""


class EkgError(ValueError):
    """A mistake of the caller's, in one line: what is wrong, where, and what to do.

    The text names arguments between backticks, as in "`target_rate` must be in (0, 1]": a program
    reads it as it is, and a script puts its flag there. Characters that cannot be shown are
    escaped: names in damaged files may hold any.
    """

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(map(escaped, text.split("\n"))))


def escaped(text):
    """Returns a text with an escape for each character that cannot be shown, line ends included."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def first_line(error):
    """Returns the first line of an error's text, or its kind where it has none: others' errors may
    have many.
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
