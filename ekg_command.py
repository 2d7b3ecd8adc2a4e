"""Console command `ekg`, and what has to happen before TensorFlow is imported.

`import ekg` imports TensorFlow, so this module is outside the package. It imports the standard
library alone, and --help and --version end here.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

# TensorFlow reads this when it is first imported. Without it, convolution gradients take several
# times as long on CPUs without VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Where sources define flags: the field of a settings class, or add_argument
FLAG = re.compile(r'^    (\w+): [^=\n]+ = setting\(|add_argument\(\s*"--([\w-]+)"', re.MULTILINE)
# INFO messages of TensorFlow's C++ code during the import, before it reads its log level
FIRST_LINES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called|I\d{4} [\d:.]+ "
)
COMMANDS = {
    "prune": "prune a network on your own data",
    "inspect": "show what can be pruned, and why the rest cannot",
    "export": "write a LiteRT, ONNX, SavedModel or .keras file, and compare it with the network",
    "evaluate": "measure loss, metrics, FLOPs, parameters and latency on your own data",
}
EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130


def main():
    """Runs the command line of `ekg`."""
    _open_closed_streams()
    command, *arguments = sys.argv[1:] or [""]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command == "--version":
        print(f"ekg {version()}")
        return
    if command not in COMMANDS:
        found = f"no command {command}" if command else "a command is missing"
        _end(f"error: {found}; there are {', '.join(COMMANDS)}. --help describes them.")
    try:
        load("ekg", f"ekg {command}", arguments)
        commands = importlib.import_module("ekg.commands.console")
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        _end(f"error: {error}")
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    commands.run(command, arguments)


def usage():
    """Returns the text of `ekg --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ekg COMMAND MODEL [--flag value ...]",
            "",
            "Prune trained Keras networks. MODEL is a .keras or .h5 file; export and evaluate take",
            "run folders, too, and prune and inspect names of keras.applications.",
            "",
            *lines,
            "",
            "`ekg COMMAND --help` lists the flags of a command, `ekg --version` the version.",
        ]
    )


def version():
    """Returns the version of the package `ekg`, which is read and not imported."""
    text = (_package() / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def _package():
    (folder,) = importlib.util.find_spec("ekg").submodule_search_locations
    return Path(folder)


def _end(text, code=EXIT_USER_ERROR):
    print(text, file=sys.stderr)
    sys.exit(code)


# ---------------------------------------------------------------- before TensorFlow is imported


def load(module, program=None, arguments=None, sources=()):
    """Imports a module that brings TensorFlow, without TensorFlow's first lines.

    Loading TensorFlow takes seconds, so unknown flags end the program before, and the command line
    is echoed.

    Args:
        module: name of the module.
        program: name of the running program; None checks and echoes nothing.
        arguments: list of its arguments; None takes those of the process.
        sources: pathlib.Paths of sources outside the package that define flags of the program.
    """
    _open_closed_streams()
    if "tensorflow" in sys.modules:
        return
    if program is not None:
        arguments = sys.argv[1:] if arguments is None else arguments
        unknown = unknown_flags(arguments, [*_package().glob("**/*.py"), *sources])
        if unknown:
            _end(f"error: unrecognized arguments: {' '.join(unknown)}. --help lists all arguments.")
        _announce(program, arguments)
    shows_all = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    with contextlib.nullcontext() if shows_all else _without_first_lines():
        importlib.import_module(module)


def unknown_flags(arguments, sources):
    """Returns the flags among some arguments that no source defines.

    The sources are searched as text, since importing them imports TensorFlow. A flag of another
    program counts as known; the parser refuses it later.

    Args:
        arguments: list of text.
        sources: pathlib.Paths of Python files.
    """
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    given = [flag for flag in given if flag != "--"]
    if not given:
        return []
    texts = [path.read_text(encoding="utf-8") for path in sources]
    names = {field or flag for text in texts for field, flag in FLAG.findall(text)} | {"help"}
    flags = {f"--{prefix}{name}" for name in names for prefix in ("", "no-")}
    # argparse takes the beginning of a flag for the flag.
    return [flag for flag in given if not any(known.startswith(flag) for known in flags)]


def _announce(program, arguments):
    """Echoes a command line, unless it asks for the help or for less output."""
    if {"-h", "--help", "--quiet"} & set(arguments):
        return
    with contextlib.suppress(OSError):  # the log may be on a full disk
        print(
            f"{program} {shlex.join(arguments)}".rstrip() + ": loading TensorFlow",
            file=sys.stderr,
            flush=True,
        )


def _open_closed_streams():
    """Opens closed standard streams to the null device, or the next file would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


@contextlib.contextmanager
def _without_first_lines():
    """Context that filters FIRST_LINES out of the standard error stream.

    A child process filters, so that the last messages of an import that aborts are not lost.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _filter_lines(reading, writing)
    original = os.dup(2)
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.waitpid(child, 0)


def _filter_lines(reading, writing):
    """Copies lines from a pipe to the standard error stream, without FIRST_LINES, and exits."""
    try:
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not FIRST_LINES.match(line):
                    os.write(2, line)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
