"""Command lines: the argument parser, and flags derived from the fields of settings."""

import argparse
import dataclasses
import re
import sys

from ekg.errors import EkgError
from ekg.settings import about, kind_of

EXIT_USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """The argument parser of all commands and scripts, with --quiet and --verbose.

    --help shows defaults, and the error for a mistake is one line without the usage.
    """

    def __init__(self, *args, **options):
        options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, **options}
        super().__init__(*args, **options)
        verbosity = self.add_mutually_exclusive_group()
        verbosity.add_argument(
            "--quiet", action="store_true", help="print only the result, warnings and errors"
        )
        verbosity.add_argument(
            "--verbose", action="store_true", help="also print what each search step tried"
        )

    def parse_args(self, args=None, namespace=None):
        """Parses arguments; an argument that is not valid UTF-8 (a file name) is an error."""
        for argument in sys.argv[1:] if args is None else args:
            try:
                str(argument).encode()
            except UnicodeEncodeError:
                shown = str(argument).encode(errors="backslashreplace").decode()
                self.error(
                    f"the argument {shown} is not valid UTF-8; rename the file, or link to it"
                )
        return super().parse_args(args, namespace)

    def names_given(self, argv=None):
        """Returns the names of the arguments that a command line gives explicitly, a set."""
        not_given = object()
        probe = argparse.Namespace(**{action.dest: not_given for action in self._actions})
        values = vars(self.parse_args(argv, probe))
        return {name for name, value in values.items() if value is not not_given}

    def error(self, message):
        """Ends the program with a one-line error message."""
        self.exit(EXIT_USER_ERROR, f"error: {message.rstrip('.')}. --help lists all arguments.\n")


def with_flags(text, names):
    """Replaces `name` by --name in an error message, for the names of flags."""

    def flag_of(match):
        return f"--{match[1]}" if match[1] in names else match[0]

    return re.sub(r"`(\w+)`", flag_of, text)


def add_flags(parser, title, cls, notes=None, **defaults):
    """Adds a flag for every setting of a class to an argparse parser, as a group.

    Args:
        parser: argparse.ArgumentParser.
        title: of the group.
        cls: dataclass of settings.
        notes: {name: what its help says besides}.
        defaults: {name: default} where they differ from those of the class.
    """
    group = parser.add_argument_group(title)
    for field in dataclasses.fields(cls):
        details, (kind, is_list), default = (
            about(field),
            kind_of(field),
            defaults.get(field.name, field.default),
        )
        text = "; ".join(filter(None, (details.help, (notes or {}).get(field.name))))
        options = {
            "help": text,
            "default": list(default) if isinstance(default, tuple) else default,
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction if default else "store_true"
        else:
            options |= {"type": kind, "choices": details.choices, "required": details.is_required}
        if is_list:
            options["nargs"] = "+" if details.may_be_none else "*"
        group.add_argument(f"--{field.name}", **options)


def rate_note(default):
    """Returns what the help says of the share of the FLOPs that fill_in_rate_() takes."""
    return {"target_rate": f"without any target {default:g}"}


def check_rates(args):
    """Raises EkgError if `target_rates` comes with what is for a single target.

    Args:
        args: parsed arguments, before fill_in_rate_().
    """
    if not args.target_rates:
        return
    single = ("target_rate", "target_params", "target_latency", "target_ms", "search_from")
    for name in (*single, "restart"):
        if getattr(args, name) is not None:
            raise EkgError(f"`target_rates` and `{name}` exclude each other; leave one out.")
    if len(set(args.target_rates)) < len(args.target_rates):
        raise EkgError("`target_rates` names a share twice.")


def check_drop(args):
    """Raises EkgError if `max_drop` comes with another target, or with what it excludes.

    Args:
        args: parsed arguments, before fill_in_rate_().
    """
    if args.max_drop is None:
        return
    targets = ("target_rate", "target_rates", "target_params", "target_latency", "target_ms")
    for name in (*targets, "search_from", "restart"):
        if getattr(args, name) is not None:
            raise EkgError(f"`max_drop` and `{name}` exclude each other; leave one out.")
    if getattr(args, "overwrite", False):
        raise EkgError(
            "`max_drop` and `overwrite` exclude each other; name a new `train_path`, or remove the "
            "folder."
        )


def fill_in_rate_(args, default):
    """Sets the share of the FLOPs that a command line left out: all where another target is given,
    else a default.
    """
    if args.target_rate is None:
        others = (args.target_params, args.target_latency, args.target_ms)
        args.target_rate = default if all(other is None for other in others) else 1.0


def name_of_targets(args):
    """Returns what tells the run folders of command lines with different targets apart, as "0.45"
    or "latency0.6".
    """
    if args.max_drop is not None:
        return f"drop{args.max_drop:g}"
    if args.target_rates:
        return "-".join(f"{rate:g}" for rate in sorted(args.target_rates, reverse=True))
    given = {
        "": None if args.target_rate == 1.0 else args.target_rate,
        "params": args.target_params,
        "latency": args.target_latency,
        "ms": args.target_ms,
    }
    return (
        "_".join(f"{name}{value:g}" for name, value in given.items() if value is not None)
        or f"{args.target_rate:g}"
    )


def describe_targets(args):
    """Returns what is aimed at, in words, as "45 % of its FLOPs"."""
    if args.max_drop is not None:
        return f"a loss of at most {args.max_drop:g} points"
    if args.target_rates:
        rates = sorted(args.target_rates, reverse=True)
        return ", ".join(f"{100 * rate:.4g} %" for rate in rates) + " of its FLOPs"
    given = {
        "{:.4g} % of its FLOPs": 100 * args.target_rate if args.target_rate < 1 else None,
        "{:.4g} % of its parameters": args.target_params and 100 * args.target_params,
        "{:.4g} % of its latency": args.target_latency and 100 * args.target_latency,
        "{:g} ms": args.target_ms,
    }
    return (
        " and ".join(words.format(value) for words, value in given.items() if value is not None)
        or "all of its FLOPs"
    )


def renamed(error, names):
    """Returns an EkgError with the names of flags in place of names of arguments.

    Args:
        error: EkgError.
        names: {name of an argument: name of the flag}.
    """
    text = re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", str(error))
    return EkgError(text)


def named(args, *classes, but=()):
    """Returns {name: value} of the settings of some classes that a command line names.

    Args:
        args: parsed arguments, whose entry `given` holds the names that the command line has.
        classes: dataclasses of settings.
        but: names that are left out.
    """
    return {
        name: value
        for cls in classes
        for name, value in vars(from_args(cls, args)).items()
        if name in args.given and name not in but
    }


def from_args(cls, args):
    """Returns the settings of a class that the parsed arguments hold.

    Raises:
        EkgError: a value is outside its range.
    """
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls)}
    return cls(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
