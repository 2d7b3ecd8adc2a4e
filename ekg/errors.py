"""The one kind of error that a caller can cause."""


class EkgError(ValueError):
    """A mistake of the caller's, in one line: what is wrong, where, and what to do.

    The text names arguments between backticks, as in "`target_rate` must be in (0, 1]": a program reads it as it is, and
    a script puts its flag there.
    """
