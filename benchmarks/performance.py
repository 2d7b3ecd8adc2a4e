"""Times every phase of a run before and after a change and writes docs/performance.md.

    python -m benchmarks.performance --before CHECKOUT --trained_param resnet56.pkl \\
        --data_path cifar-10-batches-py --history history.jsonl --out docs

It also measures how the cost of each phase grows. CHECKOUT is another checkout of this repository,
at the revision to compare with. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
from analyses.results import markdown_table
from benchmarks import growth
from ekg.io import files
from ekg.run.arguments import origin

HERE = Path(__file__).resolve().parent.parent
START_COMMAND = (
    "train_cifar.py",
    "--dataset",
    "DIGITS",
    "--arch",
    "ResNet-20",
    "--target_rate",
    "0.8",
    "--baseline_epoch",
    "1",
    "--train_epoch",
    "1",
    "--batch_size",
    "16",
    "--search_step",
    "0.5",
)
LONG_SECONDS = 45.0  # longer phases run once; shorter ones have a warm-up before the rounds
NAMES = "performance.json"
PAGE = "performance.md"
PICTURE = "growth.png"
HEAD = ("what", "before", "after", "times as fast", "share of peak before", "share of peak after")
PEAK = "peak"  # the name of the phase that is a matrix product
# {entry of the record: (title, explanation, head of its tables)}, which other programs fill
SECTIONS = {
    "agreement": (
        "Searches in other formats",
        "At each of so many steps of a float32 search, from its own sub-network and knowledge: how "
        "often a format chooses the same group of channels, and ends with the same channels.",
        ("format", "steps", "same group", "same sub-network"),
    ),
    "formats": (
        "Number formats",
        "Shares of peak refer to the matrix product in the same format. `python -m "
        "benchmarks.bench_gpu --out docs` adds the table of a GPU: with and without XLA, in "
        "float32, TF32, bfloat16 and float16.",
        ("work", "format", "XLA", "seconds", "rate", "share of peak", "peak memory"),
    ),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Compare the speed of two revisions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--before", type=Path, required=True, help="checkout of the earlier revision"
    )
    parser.add_argument("--trained_param", type=Path, required=True)
    parser.add_argument("--data_path", type=Path, required=True, help="CIFAR-10")
    parser.add_argument(
        "--history", type=Path, required=True, help="history.jsonl of a search of that network"
    )
    parser.add_argument("--arch", default="ResNet-56")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds per phase, in which the revisions take turns"
    )
    parser.add_argument(
        "--small_rounds", type=int, default=2, help="small runs per revision, in turns"
    )
    parser.add_argument(
        "--growth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure growth; otherwise the page keeps its earlier figures",
    )
    parser.add_argument(
        "--only", help="time only the phases whose names begin with this, and write no page"
    )
    parser.add_argument("--out", type=Path, default=HERE / "docs")
    return parser.parse_args(argv)


class Revision:
    """A process that runs phases on request, with the code of a checkout."""

    def __init__(self, args, checkout):
        command = [sys.executable, str(HERE / "benchmarks" / "phases.py"), "--arch", args.arch]
        for name in ("trained_param", "data_path", "history"):
            command += [f"--{name}", str(getattr(args, name).resolve())]
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=checkout,
        )
        self.phases = self._answer()

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise RuntimeError("a revision ended before it answered; its output is above.")

    def seconds(self, name):
        """Returns the seconds of a phase."""
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self):
        self._process.stdin.close()
        self._process.wait()


def measure_phases(args):
    """Times all phases of both revisions, which take turns.

    Returns:
        List of {"name", "work", "count", "unit", "before", "after"}; the last two are lists of
        seconds.
    """
    revisions = [Revision(args, checkout) for checkout in (args.before, HERE)]
    phases = []
    for name, (work, count, unit) in revisions[1].phases.items():
        if name != PEAK and not name.startswith(args.only or ""):
            continue
        warm_up = [revision.seconds(name) for revision in revisions]
        if max(warm_up) < LONG_SECONDS and args.rounds:
            rounds = [
                [revision.seconds(name) for revision in revisions] for _ in range(args.rounds)
            ]
        else:
            rounds = [warm_up]
        phase = {
            "name": name,
            "work": work,
            "count": count,
            "unit": unit,
            "before": [before for before, _ in rounds],
            "after": [after for _, after in rounds],
        }
        phases.append(phase)
        print(json.dumps(phase), flush=True)
    for revision in revisions:
        revision.end()
    return phases


def small_run(checkout):
    """Returns {part: seconds} of a small run on DIGITS with the code of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *START_COMMAND, "--train_path", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=checkout)
        whole = time.perf_counter() - start
        lines = files.read_report_lines(Path(folder) / "run" / "phases.jsonl")
        phases = {line["phase"]: line["seconds"] for line in lines}
    return {
        "whole": whole,
        "report": phases["report"],
        "start and what is between the phases": whole - sum(phases.values()),
    }


def measure_small_runs(args):
    """Times the parts of small runs of both revisions, in the form of measure_phases()."""
    rounds = [
        [small_run(checkout) for checkout in (args.before, HERE)] for _ in range(args.small_rounds)
    ]
    parts = rounds[0][0] if rounds else ()
    return [
        {
            "name": f"small run on DIGITS: {part}",
            "work": None,
            "count": 0,
            "unit": "s",
            "before": [before[part] for before, _ in rounds],
            "after": [after[part] for _, after in rounds],
        }
        for part in parts
    ]


def table(phases):
    """Returns the rows of a table with HEAD for the phases of measure_phases().

    "Times as fast" is the median of the ratios within rounds, in which both revisions ran one after
    the other.
    """
    peak = next(phase for phase in phases if phase["name"] == PEAK)
    rows = []
    for phase in phases:
        if phase is peak:
            continue
        pairs = zip(phase["before"], phase["after"])
        ratio = statistics.median(before / after for before, after in pairs)
        cells = []
        shares = []
        for side in ("before", "after"):
            seconds = statistics.median(phase[side])
            if phase["count"]:
                cells.append(f"{phase['count'] / seconds:,.0f} {phase['unit']}")
            else:
                cells.append(f"{seconds:.1f} s")
            peak_rate = peak["work"] / statistics.median(peak[side])
            shares.append(f"{phase['work'] / seconds / peak_rate:.2f}" if phase["work"] else "")
        rows.append([phase["name"], *cells, f"{ratio:.2f}", *shares])
    return rows


def markdown(record):
    """Returns the page for a record."""
    now = record["after"]
    peak = next(phase for phase in record["phases"] if phase["name"] == PEAK)
    gflops = 2 * peak["work"] / statistics.median(peak["after"]) / 1e9
    lines = [
        "# Speed",
        "",
        f"Made by `python -m benchmarks.performance`; every round is in [{NAMES}]({NAMES}). Two "
        f"revisions of the code, {record['before'][:7]} and {(now['revision'] or 'unknown')[:7]}, "
        f"ran in turn on one machine ({now['machine']['processor']}, {now['cores']} cores). "
        'Seconds and rates are medians; "times as fast" is the median of the ratios within '
        f"each round, so that a drift of the machine hits both alike. {record['arch']} on "
        f"CIFAR-10 in float32. The peak is that of a float32 matrix product, {gflops:.0f} "
        "GFLOP/s. A search step counts its multiply-accumulates as if nothing were masked; "
        "fine-tuning and the bank count those of the cut networks.",
        "",
        markdown_table(HEAD, table(record["phases"])),
        "",
    ]
    if record.get("growth"):
        lines += growth.markdown(
            record["growth"], PICTURE, (record.get("growth_of") or "unknown")[:7]
        )
    if record.get("memory"):
        lines += growth.memory_markdown(record["memory"])
    if record.get("load"):
        lines += record["load"]["lines"]
    for entry, (title, text, head) in SECTIONS.items():
        if record.get(entry):
            lines += [f"## {title}", "", text, ""]
            for name, rows in record[entry].items():
                lines += [name, "", markdown_table(head, rows), ""]
    return "\n".join([*lines, *NOT_RUN])


def add_rows(folder, section, name, rows):
    """Adds the table of another program to the page in a folder.

    Args:
        folder: pathlib.Path of the folder.
        section: one of SECTIONS.
        name: text above the table; an earlier table with the same text is replaced.
        rows: rows of the table, lists of cells.

    Raises:
        EkgError: there is no page of this program.
    """
    record = files.read_json(folder / NAMES)
    record[section] = record.get(section, {}) | {name: rows}
    write_page(folder, record)


def add_lines(folder, section, figures, lines):
    """Adds the figures of another program, and the lines on them, to the page in a folder."""
    record = files.read_json(folder / NAMES)
    write_page(folder, record | {section: {"figures": figures, "lines": lines}})


def write_page(folder, record):
    """Writes a record and its page."""
    files.write_json(folder / NAMES, record)
    files.write_whole(folder / PAGE, lambda file: file.write(markdown(record).encode()))


NOT_RUN = ("## Not run", "", "The two revisions were not compared on a GPU.", "")


def main(args):
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=args.before, capture_output=True, text=True
    )
    if args.only:
        print(markdown_table(HEAD, table(measure_phases(args))))
        return
    now = origin()
    old_record = files.read_json(args.out / NAMES) if (args.out / NAMES).exists() else {}
    record = old_record | {
        "arch": args.arch,
        "before": revision.stdout.strip() or "unknown",
        "after": now,
        "phases": [*measure_phases(args), *measure_small_runs(args)],
    }
    if args.growth:
        record |= {
            "growth": growth.measure(),
            "memory": growth.measure_memory(),
            "growth_of": now["revision"],
        }
        growth.draw(record["growth"], args.out / PICTURE)
    write_page(args.out, record)
    print(markdown(record))


if __name__ == "__main__":
    utils.run_script(main, parse_args)
