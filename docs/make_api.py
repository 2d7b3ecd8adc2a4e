"""Writes docs/api.md from the docstrings of what `import ekg` gives.

python docs/make_api.py            # writes it
python docs/make_api.py --check    # exit code 1 if it is not up to date
"""

import argparse
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ekg

PAGE = Path(__file__).with_name("api.md")
HEAD = """# The library's names

The public names of `import ekg`, generated from the docstrings by `docs/make_api.py`. A mistake of
the caller raises `ekg.EkgError`, whose message is one line.
"""


def signature(value):
    """Returns the call of a function or class as text, without annotations, on lines of at most 120
    characters.
    """
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return ""
    texts = [
        re.sub(r" at 0x\w+", "", str(parameter.replace(annotation=inspect.Parameter.empty)))
        for parameter in parameters
        if parameter.name != "self"
    ]
    stars = next(
        (
            i
            for i, parameter in enumerate(parameters)
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ),
        None,
    )
    if stars is not None and not any(
        text.startswith("*") and not text.startswith("**") for text in texts
    ):
        texts.insert(stars, "*")
    return "(" + ", ".join(texts) + ")"


def section(name, value):
    """Returns the Markdown of one name."""
    if inspect.ismodule(value):
        return f"## `ekg.{name}`\n\n{inspect.getdoc(value)}\n"
    if isinstance(value, str):
        return f"## `ekg.{name}`\n\nThe role {value!r} of an axis in `ekg.Weight`.\n"
    lines = [
        f"## `ekg.{name}`\n",
        f"```\n{name}{signature(value)}\n```\n",
        f"```text\n{inspect.getdoc(value)}\n```\n",
    ]
    if inspect.isclass(value) and not issubclass(value, Exception):
        methods = {
            key: method
            for key, method in vars(value).items()
            if not key.startswith("_") and inspect.isfunction(method) and method.__doc__
        }
        lines += [
            f"- `{key}{signature(method)}`: {first_sentence(method)}"
            for key, method in methods.items()
        ]
        lines += [""] if methods else []
    return "\n".join(lines)


def first_sentence(function):
    return " ".join(inspect.getdoc(function).split("\n\n")[0].split())


def make_page():
    """Returns the whole page."""
    return HEAD + "\n" + "\n".join(section(name, getattr(ekg, name)) for name in ekg.__all__)


def main():
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    page, options = make_page(), parser.parse_args()
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        return
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/api.md is not up to date; run: python docs/make_api.py")


if __name__ == "__main__":
    main()
