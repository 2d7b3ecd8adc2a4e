"""Writes docs/flags.md from the parsers of the scripts and of `ekg evaluate`.

python docs/make_flags.py            # writes it
python docs/make_flags.py --check    # exit code 1 if it is not up to date
"""

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import utils

PAGE = Path(__file__).with_name("flags.md")
PRUNING = ("train_cifar", "train_imagenet", "prune")
OTHERS = {"test": "test.py", "export": "export.py", "ekg.commands.evaluate": "ekg evaluate"}
SHORT = {"train_cifar": "cifar", "train_imagenet": "imagenet", "prune": "prune"}
MAX_CHOICES = 12  # more are named by --help alone
HEAD = """# Flags

Generated from the settings by `docs/make_flags.py`; `--help` prints the same. Python takes the same
names: `ekg.prune(model, data, search={"search_step": 0.4}, fine_tune={"batch_size": 64})`, see
[own_network.md](own_network.md#settings). A flag that has no effect with the others is an error.
`ekg prune` and `ekg inspect` take the flags of `prune.py`, and `ekg export` those of `export.py`
except `--arch` and `--dataset`. `analyze.py COMMAND --help` lists the flags of the analyses.
"""
PRUNING_HEAD = """## train_cifar.py, train_imagenet.py, prune.py

The defaults of the method's flags in the training scripts are the paper's. A flag that only one of
these scripts has, or a default that differs between them, is marked `cifar`, `imagenet` or `prune`.
"""
NOTES = {
    "search": """The target is met from below: the result keeps at most `--target_rate` of the
FLOPs, and less than that by under one channel (by under m channels with `prune.py --multiple_of
m`). Where `--target_params`, `--target_latency` or `--target_ms` is given, `--target_rate` counts
only if it is given, too.

`--groups_per_step` is the better way to a cheaper search. ResNet-56 on CIFAR-10 at 45 % of the
FLOPs, one seed, search alone: 78 steps with 1 (validation loss .190, 476 s), 39 with 2 (.212,
262 s), 21 with 4 (.206, 139 s), and 46 with `--search_step 0.4` (.270, 281 s).
[reproduce.md](reproduce.md#the-released-program) explains `--group_choice published`, and
[equations.md](equations.md), section 4, the criteria.""",
    "latency": "[deployment.md](deployment.md) says which target suits which use.",
    "network that is cut out": "[equations.md](equations.md), 6a, describes the repair.",
    "fine-tuning": """`--finetune_teacher ensemble` is the memory bank, `single` ordinary
distillation from the unpruned network, `none` the labels alone. With 1000 outputs or more,
`prune.py` takes a temperature of 10.""",
    "network and run folder": """`--search_from` reuses another run's finished search of the same
`--trained_param`. The new run fine-tunes the same sub-network with another teacher, schedule (but
the same weight decay), batch or precision. [runs.md](runs.md) describes run folders.""",
    "devices": "[cluster.md](cluster.md) describes several GPUs and several machines.",
    "run": """`--precision auto` takes bfloat16 where the processor has instructions for it and a
measured training step is faster; the run keeps the choice. Second derivatives are always
float32.""",
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one script, as the page shows it."""

    name: str
    default: str
    text: str


class _Parsed(Exception):
    """Carries a script's parser out of its parse_args()."""

    def __init__(self, parser):
        super().__init__()
        self.parser = parser


def parser_of(script):
    """Returns the argparse parser that a script builds."""

    def stop(parser, *_):
        raise _Parsed(parser)

    with mock.patch.object(utils.Parser, "parse_args", stop):
        try:
            importlib.import_module(script).parse_args([])
        except _Parsed as parsed:
            return parsed.parser
    raise RuntimeError(f"{script}: parse_args() parses nothing with utils.Parser.")


def groups_of(script):
    """Returns {title of a group: list of Flags} of a script."""
    return {
        group.title: [make_flag(action) for action in group._group_actions]
        for group in parser_of(script)._action_groups
        if group.title not in ("positional arguments", "options")
    }


def make_flag(action):
    """Returns the Flag of an argparse action."""
    is_switch = isinstance(action, (argparse._StoreTrueAction, argparse.BooleanOptionalAction))
    text = action.help
    if action.choices and len(action.choices) <= MAX_CHOICES:
        text += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
    default = action.default
    if action.required:
        shown = "required"
    elif is_switch:
        shown = "on" if default else "off"
    elif default is None or default in ([], ()):
        shown = ""
    elif isinstance(default, (list, tuple)):
        shown = f"`{' '.join(map(str, default))}`"
    else:
        shown = f"`{default}`"
    return Flag(" / ".join(f"`{name}`" for name in action.option_strings), shown, text)


def merge(scripts):
    """Returns {title: list of Flags} of several scripts, each flag once."""
    found = {script: groups_of(script) for script in scripts}
    merged = {}
    for title in dict.fromkeys(title for groups in found.values() for title in groups):
        by_name = {}
        for script in scripts:
            for flag in found[script].get(title, ()):
                by_name.setdefault(flag.name, {})[script] = flag
        merged[title] = [merge_flag(flags, scripts) for flags in by_name.values()]
    return merged


def merge_flag(flags, scripts):
    """Returns one Flag for {script: Flag} of one name, which names scripts where they differ."""
    name = next(iter(flags.values())).name
    if len(flags) < len(scripts):
        name += f" ({', '.join(SHORT[script] for script in flags)})"
    defaults = {script: flag.default or "none" for script, flag in flags.items()}
    default = "" if set(defaults.values()) == {"none"} else merge_texts(defaults)
    return Flag(name, default, merge_texts({script: flag.text for script, flag in flags.items()}))


def merge_texts(texts):
    """Returns one text for {script: text}; clauses that all of them begin with are said once."""
    clauses = [text.split("; ") for text in texts.values()]
    shared = []
    for first, *others in zip(*clauses):
        if any(other != first for other in others):
            break
        shared.append(first)
    rest = {script: "; ".join(text.split("; ")[len(shared) :]) for script, text in texts.items()}
    for variant in dict.fromkeys(filter(None, rest.values())):
        names = [SHORT[script] for script, text in rest.items() if text == variant]
        shared.append(f"{variant} ({', '.join(names)})")
    return "; ".join(shared)


def table(flags):
    """Returns the Markdown table of Flags."""
    rows = [f"| {flag.name} | {flag.default} | {escape(flag.text)} |" for flag in flags]
    return "\n".join(["| flag | default | what it is |", "|---|---|---|", *rows])


def escape(text):
    return text.replace("|", "\\|")


def section(title, flags, level):
    note = NOTES.get(title)
    parts = [
        f"{'#' * level} {title[0].upper()}{title[1:]}",
        *([note] if note else []),
        table(flags),
    ]
    return "\n\n".join(parts)


def make_page():
    """Returns the whole page."""
    parts = [HEAD.strip(), PRUNING_HEAD.strip()]
    parts += [section(title, flags, 3) for title, flags in merge(PRUNING).items()]
    for script, title in OTHERS.items():
        parts.append(f"## {title}")
        parts += [table(flags) for flags in groups_of(script).values()]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Write docs/flags.md from the settings.")
    parser.add_argument("--check", action="store_true", help="only check that it is up to date")
    page, options = make_page(), parser.parse_args()
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        return
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/flags.md is not up to date; run: python docs/make_flags.py")


if __name__ == "__main__":
    main()
