"""Runs the analyses of the paper: one subcommand per analysis.

    # a finished run as a page of pictures
    python analyze.py run runs/ResNet-56_CIFAR10_0.45
    # smoothness of the loss landscape at a network
    python analyze.py condition resnet56.pkl --arch ResNet-56
    # loss surfaces side by side
    python analyze.py landscape a.pkl b.pkl --arch ResNet-56
    python analyze.py correlation --trained_param resnet20.pkl --arch ResNet-20 --subnetworks 10
    python analyze.py criteria --trained_param resnet56.pkl --arch ResNet-56 -- --train_epoch 1
    python analyze.py ablation --trained_param resnet56.pkl --arch ResNet-56 --seeds 0 1 2
    python analyze.py tables runs/*

Each writes numbers (JSON, CSV), a picture and a line of text. The same command again resumes where
it stopped. Arguments after `--` are passed on to train_cifar.py.
"""

import argparse
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import op_utils
from analyses.ablation import all_run_flags, compare_teachers
from analyses.conditions import HessianSettings, NotConverged, SpectrumSettings, measure_conditions
from analyses.correlation import StudySettings, study_correlation
from analyses.criteria import compare_criteria, run_flags
from analyses.runs import PruningRuns, report_run
from analyses.subject import ImageSettings, ResultSettings, Subject, TrainedSettings
from analyses.surfaces import GridSettings, measure_surfaces
from analyses.tables import write_tables
from ekg.command_line import add_flags, from_args
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.searching.criteria import CRITERIA
import train_cifar
from train_cifar import CifarSettings

EXIT_NOT_CONVERGED = 4


def parse_args(argv=None):
    """Parses and checks the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    rest = []
    if "--" in argv:
        rest = argv[argv.index("--") + 1 :]
        argv = argv[: argv.index("--")]
    parser = utils.Parser(description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands = {}
    for name, (_, text, groups) in COMMANDS.items():
        commands[name] = subparsers.add_parser(name, help=text, description=text)
        for title, cls in groups.items():
            add_flags(commands[name], title, cls)
    for name in ("condition", "landscape"):
        commands[name].add_argument("params", nargs="+", type=Path, help="parameter files")
    commands["criteria"].add_argument(
        "--criteria", nargs="+", default=list(CRITERIA), choices=list(CRITERIA)
    )
    commands["ablation"].add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one run per seed and row"
    )
    commands["run"].add_argument("folder", type=Path, help="run folder")
    commands["tables"].add_argument(
        "runs",
        nargs="*",
        type=Path,
        help="run folders, folders of condition, correlation and landscape, and records of runs "
        "(.json files)",
    )
    commands["tables"].add_argument(
        "--out",
        type=Path,
        help="folder whose results/ stores a record of each run and study, and whose results.md is "
        "generated from all of them; without it the tables are only printed",
    )
    commands["tables"].add_argument(
        "--readme", type=Path, help="page whose table of published figures is generated again"
    )
    args = parser.parse_args(argv, argparse.Namespace(rest=rest))
    if rest and args.command not in ("criteria", "ablation"):
        parser.error(
            f"{args.command} starts no runs: {' '.join(rest)} has no effect; leave it out."
        )
    try:
        for cls in COMMANDS[args.command][2].values():
            from_args(cls, args)
    except EkgError as error:
        parser.error(utils.with_flags(str(error), vars(args)))
    if args.command == "tables" and not (args.runs or args.out):
        parser.error(
            "tables needs run folders or records, or --out with a folder that holds records."
        )
    if args.command not in ("run", "tables") and args.out is None:
        args.out = Path("analysis") / args.command
    _check_runs(args)
    return args


def _check_runs(args):
    """Ends the program with one line if train_cifar.py would refuse the flags of a run."""
    if args.command == "criteria":
        all_flags = [run_flags(name) for name in args.criteria]
    elif args.command == "ablation":
        all_flags = all_run_flags(args.seeds)
    else:
        return
    for flags in all_flags:
        train_cifar.parse_args(make_runs(args).arguments("run", *flags))


def make_subject(args):
    """Returns the Subject for the arguments."""
    data = dataloader.load(args.dataset, args.data_path)

    def load(path):
        params = utils.load_params(path)
        classes = params["fc/biases:0"].size if "fc/biases:0" in params else data.num_classes
        if classes != data.num_classes:
            raise EkgError(
                f"{path}: a network of {classes} classes, and {args.dataset} has "
                f"{data.num_classes}; name networks of the same classes."
            )
        return nets.from_params(args.arch, params, data.num_classes, path)

    return Subject(args.arch, data, load, args.batch_size)


def make_runs(args):
    """Returns the PruningRuns for the arguments."""
    return PruningRuns(
        args.out / "runs",
        args.arch,
        args.dataset,
        args.data_path,
        args.trained_param,
        args.target_rate,
        tuple(args.rest),
    )


# ---------------------------------------------------------------- commands


def condition(args):
    """Measures condition numbers of networks; exit code 4 if eigenvalues did not converge."""
    return measure_conditions(
        make_subject(args),
        args.params,
        from_args(ImageSettings, args),
        from_args(SpectrumSettings, args),
        from_args(HessianSettings, args),
        args.out,
    )


def landscape(args):
    """Measures loss surfaces of stored networks."""
    return measure_surfaces(
        make_subject(args),
        args.params,
        from_args(ImageSettings, args),
        from_args(GridSettings, args),
        args.out,
    )


def correlation(args):
    """Studies what predicts the loss after fine-tuning; exit code 4 like condition()."""
    # The strategy must come before any other use of a device.
    compute = Compute(Team(op_utils.make_strategy()), op_utils.use_xla("auto"))
    return study_correlation(
        make_subject(args),
        from_args(StudySettings, args),
        from_args(SpectrumSettings, args),
        args.out,
        compute,
    )


def criteria(args):
    """Prunes with each criterion at one rate; exit code 4 if eigenvalues did not converge."""
    return compare_criteria(
        make_subject(args),
        make_runs(args),
        args.criteria,
        from_args(SpectrumSettings, args),
        args.out,
    )


def ablation(args):
    """Prunes with all pairs of search teacher and fine-tuning teacher, with several seeds."""
    return compare_teachers(make_runs(args), args.seeds, args.out)


NETWORK = {"network and data": CifarSettings, "results": ResultSettings}
STORED = {"images": ImageSettings}
TRAINED = {"pruning": TrainedSettings}
SPECTRUM = {"eigenvalues": SpectrumSettings}
COMMANDS = {  # name: (function, description, {title: settings})
    "condition": (
        condition,
        "extreme eigenvalues of the loss's Hessian and the condition number",
        NETWORK | STORED | SPECTRUM | {"Hessian": HessianSettings},
    ),
    "landscape": (
        landscape,
        "loss surfaces along two filter-normalised directions",
        NETWORK | STORED | {"grid": GridSettings},
    ),
    "correlation": (
        correlation,
        "ends of searches: loss and condition number before, loss after fine-tuning",
        NETWORK | {"sub-networks": StudySettings} | SPECTRUM,
    ),
    "criteria": (criteria, "prune with each criterion", NETWORK | TRAINED | SPECTRUM),
    "ablation": (ablation, "search teacher x fine-tuning teacher", NETWORK | TRAINED),
    "run": (
        lambda args: report_run(args.folder),
        "write the report of a finished run into its folder",
        {},
    ),
    "tables": (
        lambda args: write_tables(args.runs, args.out, args.readme),
        "Markdown tables of finished runs next to the published figures",
        {},
    ),
}


def main(args):
    """Runs the sub-command and returns its rows or text."""
    try:
        return COMMANDS[args.command][0](args)
    except NotConverged as error:
        print(f"error: {utils.with_flags(str(error), vars(args))}", file=sys.stderr)
        sys.exit(EXIT_NOT_CONVERGED)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
