"""One battery over every setting of the library and of the scripts."""

import argparse
import ast
import collections
import dataclasses
import math
from pathlib import Path

import pytest

import op_utils
import test as test_script
import train_cifar
import train_imagenet
from ekg import command_line, settings
from ekg.commands import prune
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.goal import MaxDropSettings
from ekg.io import files
from ekg.run import reuse
from ekg.run import run as running
from ekg.run.folder import RunFolder
from ekg.searching.settings import SearchSettings
from ekg.settings import MACHINE, SEARCH, TRAINING, Range, about
from tests.helpers import small_jobs
from tests.helpers.comparisons import mirrored

SHARED = tuple(op_utils.SHARED_FLAGS.values())
# script -> (its dataclasses of settings, arguments that it must have)
SCRIPTS = {
    train_cifar: ((train_cifar.CifarSettings, *SHARED), []),
    train_imagenet: ((train_imagenet.ImageNetSettings, *SHARED), ["--data_path", "somewhere"]),
    test_script: (
        (test_script.TestSettings, op_utils.DeviceSettings),
        ["--trained_param", "p.pkl"],
    ),
}
FIELDS = [
    (cls, field)
    for cls in dict.fromkeys(cls for classes, _ in SCRIPTS.values() for cls in classes)
    for field in dataclasses.fields(cls)
]
FLAGS = [
    (script, cls, field)
    for script, (classes, _) in SCRIPTS.items()
    for cls in classes
    for field in dataclasses.fields(cls)
]
REQUIRED = {
    train_imagenet.ImageNetSettings: {"data_path": "somewhere"},
    test_script.TestSettings: {"trained_param": Path("p.pkl")},
}

# What a number must be: (names, text in an error, numbers just inside, numbers just outside)
WHOLE_RANGES = [
    (("virtual_devices",), "from 1 to 64", (1, 64), (0, -1, 65, 10**6)),
    (
        (
            "subset_per_class",
            "groups_per_step",
            "search_batch_size",
            "shortlist",
            "val_per_class",
            "num_teacher",
            "batch_size",
            "train_epoch",
            "val_batch_size",
            "accum",
            "baseline_epoch",
            "latency_batch",
            "latency_threads",
        ),
        "at least 1",
        (1, 10**9),
        (0, -1),
    ),
    (
        ("warmup_epoch",),
        "0 or more",
        (0, 100),
        (-1,),
    ),  # no more than the epochs of the training, 100 by default
    (("num_views",), "from 1 to 2", (1, 2), (0, 3)),
    (("test_every", "probe_epochs"), "0 or more", (0, 10**9), (-1,)),
    (("seed",), "from 0 to 4294967295", (0, 2**32 - 1), (-1, 2**32)),
]
TINY, NEARLY_ONE, ABOVE_ONE = 1e-300, math.nextafter(1, 0), math.nextafter(1, 2)
NO_NUMBERS = (math.nan, math.inf, -math.inf)
REAL_RANGES = [
    (
        ("target_rate", "target_params", "search_step"),
        "in (0, 1]",
        (TINY, 1.0),
        (0.0, -TINY, ABOVE_ONE),
    ),
    (
        ("decay_points", "target_latency", "target_rates", "held_out", "lowest_rate"),
        "in (0, 1)",
        (TINY, NEARLY_ONE),
        (0.0, 1.0),
    ),
    (
        ("temperature", "learning_rate", "subset_learning_rate", "decay_rate", "target_ms"),
        "positive",
        (TINY, 1e300),
        (0.0, -TINY),
    ),
    (("weight_decay", "checkpoint_minutes", "image_memory"), "0 or more", (0.0, 1e300), (-TINY,)),
    (("label_smoothing",), "in [0, 1)", (0.0, NEARLY_ONE), (-TINY, 1.0)),
    (("max_drop",), "in (0, 100)", (TINY, 99.9), (0.0, 100.0)),
]
RANGES = {
    name: (text, inside, outside + (NO_NUMBERS if ranges is REAL_RANGES else ()))
    for ranges in (WHOLE_RANGES, REAL_RANGES)
    for names, text, inside, outside in ranges
    for name in names
}
WITHOUT_RANGE = {"gpu_id"}  # its numbers are compared with the GPUs that are there

# Values that are not the defaults, where they do not follow from the type
OTHERS = {
    "data_path": "elsewhere",
    "gpu_id": (0, 2),
    "decay_points": (0.25,),
    "target_rates": (0.25, 0.5),
    "subset_per_class": 260,
    "num_views": 1,
    "trained_param": Path("q.pkl"),
    "train_path": Path("run"),
    "search_from": Path("other"),
    "latency_table": Path("table.json"),
    "runtimes": ("litert",),
    "exports": ("onnx",),
}
# Where another target is given, that of the FLOPs falls away unless it is given, too.
RATE = ["--target_rate", "0.45"]
COMPANIONS = {
    "shortlist": ["--reward", "condition_number"],
    "search_from": ["--trained_param", "p.pkl"],
    "target_params": RATE,
    "target_latency": RATE,
    "target_ms": RATE,
} | dict.fromkeys(("held_out", "lowest_rate", "probe_epochs"), ["--max_drop", "1"])
COMPANIONS |= dict.fromkeys(
    ("latency_runtime", "latency_batch", "latency_threads", "latency_table"),
    [*RATE, "--target_latency", "0.5"],
)


def name_of(value):
    return getattr(value, "__name__", None) or getattr(value, "name", None) or repr(value)


def is_list(field):
    return field.name in ("gpu_id", "decay_points", "target_rates", "runtimes", "exports")


def make(cls, **values):
    return cls(**REQUIRED.get(cls, {}) | values)


def make_with(cls, field, value):
    """Returns the settings with this value, or this one entry, of a field."""
    return make(cls, **{field.name: (value,) if is_list(field) else value})


def has_other_value(field):
    return about(field).choices is None or len(about(field).choices) > 1


def other_value(field):
    """Returns a value that is not the default, nor that of another script."""
    if field.name in OTHERS:
        return OTHERS[field.name]
    if about(field).choices:
        return next(choice for choice in about(field).choices if choice != field.default)
    if isinstance(field.default, bool):
        return not field.default
    return 2 if settings.kind_of(field)[0] is int else 0.5


def argv_for(field, value):
    if isinstance(value, bool):
        return [f"--{field.name}" if value else f"--no-{field.name}"]
    return [f"--{field.name}", *map(str, value if is_list(field) else [value])]


def parse(script, *argv):
    return script.parse_args([*SCRIPTS[script][1], *argv])


def read(script, args):
    """Returns {name: value} of all settings that a script's arguments hold."""
    values = [command_line.from_args(cls, args) for cls in SCRIPTS[script][0]]
    return {
        field.name: getattr(value, field.name)
        for value in values
        for field in dataclasses.fields(value)
    }


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=name_of)
def test_every_setting_has_a_description_and_says_what_it_affects(cls, field):
    details = about(field)
    assert details.affects in (SEARCH, TRAINING, MACHINE) and len(details.help) > 5
    assert (
        details.affects == MACHINE or not details.is_per_worker
    )  # workers may differ only in what changes nothing
    if details.works_if:
        assert details.works_if.other in {other.name for _, other in FIELDS}


# A run resumes, or its search is reused, where only these differ: a setting that is declared so by
# mistake mixes two results in one folder.
LEAVES_THE_RESULT_ALONE = """
    checkpoint_minutes compile data_path exports gpu_id held_out image_memory inspect latency_table
    lowest_rate max_drop overwrite preflight probe_epochs restart runtimes search_from
    skip_bad_images strategy strict target_rates test_every train_path val_batch_size val_path
    virtual_devices
"""
LEAVES_THE_SEARCH_ALONE = """
    augment augment_inputs baseline_epoch batch_size decay_points decay_rate finetune_teacher
    label_smoothing learning_rate num_teacher num_views precision repair sync_bn temperature
    train_epoch warmup_epoch
"""


def test_all_other_settings_affect_the_search():
    pruning = {train_cifar.CifarSettings, train_imagenet.ImageNetSettings, *SHARED}
    declared = {SEARCH: set(), TRAINING: set(), MACHINE: set()}
    for cls in pruning | set(prune.FLAGS.values()):
        for field in dataclasses.fields(cls):
            declared[about(field).affects].add(field.name)
    assert declared[MACHINE] == set(LEAVES_THE_RESULT_ALONE.split())
    assert declared[TRAINING] == set(LEAVES_THE_SEARCH_ALONE.split())
    assert not declared[SEARCH] & (declared[MACHINE] | declared[TRAINING])


def test_every_number_has_a_range_that_is_tested_here():
    numbers = {field.name for _, field in FIELDS if settings.kind_of(field)[0] in (int, float)}
    assert numbers == set(RANGES) | WITHOUT_RANGE
    assert {field.name for _, field in FIELDS if about(field).range} == set(RANGES)


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _ in FIELDS), ids=name_of)
def test_defaults_pass(cls):
    values = make(cls)
    assert values == make(cls) and hash(values) == hash(make(cls))
    for field in dataclasses.fields(cls):
        assert getattr(values, field.name) == REQUIRED.get(cls, {}).get(field.name, field.default)


@pytest.mark.parametrize(
    ("cls", "field"), [entry for entry in FIELDS if entry[1].name in RANGES], ids=name_of
)
def test_a_number_is_refused_just_outside_its_range(cls, field):
    text, inside, outside = RANGES[field.name]
    for number in inside:
        make_with(cls, field, number)
    for number in outside:
        received = f"{number:g}" if isinstance(number, float) else number
        with pytest.raises(EkgError) as error:
            make_with(cls, field, number)
        assert str(error.value) == f"`{field.name}` must be {text}; received {received}."


WRONG = {
    int: (1.5, "1", True),
    float: ("0.5", True),
    bool: (1, "yes"),
    str: (1, b"text"),
    Path: ("text", 1),
}


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=name_of)
def test_a_value_of_another_type_is_refused(cls, field):
    kind = settings.kind_of(field)[0]
    for value in WRONG[kind]:
        with pytest.raises(
            EkgError, match=f"^`{field.name}` must be (of type {kind.__name__}|one of .*); received"
        ):
            make_with(cls, field, value)
    if is_list(field):
        with pytest.raises(EkgError, match=f"^`{field.name}` must be a tuple; received"):
            make(cls, **{field.name: 0.5})
    if about(field).may_be_none:
        make(cls, **{field.name: None})
    else:
        with pytest.raises(EkgError, match=f"^`{field.name}` must be"):
            make(cls, **{field.name: None})


def test_a_whole_number_is_a_number():
    assert SearchSettings(target_rate=1).target_rate == 1


@pytest.mark.parametrize(
    ("cls", "field"), [entry for entry in FIELDS if about(entry[1]).choices], ids=name_of
)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(cls, field):
    for choice in about(field).choices:
        make_with(cls, field, choice)
    with pytest.raises(
        EkgError,
        match=f"^`{field.name}` must be one of .*'{about(field).choices[-1]}'.*received 'nothing'",
    ):
        make_with(cls, field, "nothing")


@pytest.mark.parametrize(
    ("number_range", "text"),
    [
        (Range(2), "at least 2"),
        (Range(0), "0 or more"),
        (Range(0, is_low_open=True), "positive"),
        (Range(3, 7), "from 3 to 7"),
        (Range(0, 1), "in [0, 1]"),
        (Range(0.5, 1.0, is_low_open=True, is_high_open=True), "in (0.5, 1)"),
    ],
)
def test_a_range_describes_itself(number_range, text):
    assert str(number_range) == text


def test_settings_are_made_by_name():
    assert SearchSettings.make({"target_rate": 0.5}) == SearchSettings(target_rate=0.5)
    with pytest.raises(
        EkgError, match="^`target_rates` is no setting here; there are target_rate, search_step, "
    ):
        SearchSettings.make({"target_rates": 0.5})
    with pytest.raises(
        EkgError,
        match="^`shortlist` has no effect here: `reward` is not condition_number; leave it out",
    ):
        SearchSettings.make({"shortlist": 5})
    SearchSettings.make({"shortlist": 5, "reward": "condition_number"})


# ---------------------------------------------------------------- flags


def parser_of(script, monkeypatch):
    """Returns the argparse.ArgumentParser that a script makes."""
    parsers = []

    def catch(parser, *_):
        parsers.append(parser)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(KeyboardInterrupt):
            script.parse_args([])
    return parsers[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_every_flag_belongs_to_one_setting(script, monkeypatch):
    parser = parser_of(script, monkeypatch)
    fields = [field for cls in SCRIPTS[script][0] for field in dataclasses.fields(cls)]
    assert max(collections.Counter(field.name for field in fields).values()) == 1
    actions = {
        action.dest: action
        for action in parser._actions
        if action.dest not in ("help", "quiet", "verbose")
    }
    assert list(actions) == [field.name for field in fields]
    assert parser.format_help().count("--") >= len(fields)  # every help text can be formatted
    for field in fields:
        action, details = actions[field.name], about(field)
        assert action.option_strings[0] == f"--{field.name}"
        note = "; without any target " if field.name == "target_rate" else ""
        assert action.help.startswith(details.help + note)
        assert (action.required, action.choices) == (details.is_required, details.choices)


@pytest.mark.parametrize(
    ("script", "cls", "field"), [entry for entry in FLAGS if has_other_value(entry[2])], ids=name_of
)
def test_a_flag_changes_only_its_own_setting(script, cls, field):
    companions = COMPANIONS.get(field.name, [])
    if (script, field.name) == (test_script, "skip_bad_images"):
        companions = ["--dataset", "ILSVRC2012"]
    value = other_value(field)
    usual = read(script, parse(script, "--data_path", "there", *companions))
    given = read(
        script, parse(script, "--data_path", "there", *companions, *argv_for(field, value))
    )
    assert usual[field.name] != given[field.name] == value
    assert {name for name in usual if usual[name] != given[name]} - {"train_path"} == {
        field.name
    } - {"train_path"}


@pytest.mark.parametrize(
    ("script", "cls", "field"), [entry for entry in FLAGS if entry[2].name in RANGES], ids=name_of
)
def test_the_parser_refuses_what_the_settings_refuse(capsys, script, cls, field):
    text, _, outside = RANGES[field.name]
    for number in outside:
        with pytest.raises(SystemExit) as exit_info:
            parse(script, f"--{field.name}={number!r}")
        assert exit_info.value.code == 2
        assert f"error: --{field.name} must be {text}; received" in capsys.readouterr().err


def test_a_run_folder_that_is_not_named_has_the_name_of_the_job():
    args = parse(train_cifar, "--arch", "ResNet-20", "--dataset", "DIGITS", "--target_rate", "0.5")
    assert args.train_path == Path("runs/ResNet-20_DIGITS_0.5")
    args = parse(train_imagenet, "--max_drop", "1.5")
    assert args.train_path == Path("runs/ResNet-50_ILSVRC2012_drop1.5")


# ---------------------------------------------------------------- what a run folder keeps

# Where a run begins and goes on; the tests below give them all the time.
GOALS = (MaxDropSettings,)
PLACES = {"train_path", "trained_param", "search_from", "overwrite", "restart"}
CIFAR_FLAGS = [
    (cls, field)
    for script, cls, field in FLAGS
    # Several targets are several jobs: see test_trade_off.py and test_goal.py
    if script is train_cifar and field.name not in (*PLACES, "target_rates") and cls not in GOALS
]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(folder of a finished run that trained its own network, for an epoch only, and its data)."""
    folder, data = tmp_path_factory.mktemp("runs") / "searched", small_jobs.make_large_data()
    small_jobs.run(
        train_cifar, data, "--baseline_epoch", 1, "--train_epoch", 1, "--train_path", folder
    )
    return folder, data


@pytest.fixture
def prepare(searched, monkeypatch):
    """Returns a function that makes or opens the run folder of a script's job; nothing is
    computed.
    """
    monkeypatch.setattr(op_utils, "make_strategy", lambda _: mirrored(1))
    monkeypatch.setattr(running, "run_job", lambda *_: [])

    def run(folder, *argv, script=train_cifar):
        small_jobs.run(script, searched[1], *argv, "--train_path", folder)
        return RunFolder.open(folder).arguments()

    return run


@pytest.mark.parametrize("script", [train_cifar, train_imagenet], ids=name_of)
def test_the_arguments_are_all_that_the_result_depends_on(script, prepare, tmp_path):
    classes, required = SCRIPTS[script]
    arguments = prepare(tmp_path / "run", *required, script=script)
    affecting = {
        field.name
        for cls in classes
        for field in dataclasses.fields(cls)
        if about(field).affects != MACHINE
    }
    assert set(arguments) == affecting | {
        "data",
        "test_data",
        "use_xla",
        "versions",
        "results_version",
    }
    assert "weight_decay" in arguments and "val_batch_size" not in arguments
    assert (
        set(arguments["versions"]) == {"python", "tensorflow", "keras", "numpy"}
        and arguments["data"]["images"] == 840
    )


def changed(field, **given):
    """Returns (arguments of a command line that change a setting, what the error about it
    tells).
    """
    usual = parse(train_cifar, *COMPANIONS.get(field.name, []))
    value = other_value(field)
    old, new = (
        list(entry) if isinstance(entry, tuple) else entry
        for entry in (getattr(usual, field.name), value)
    )
    told = f"{field.name}: {given.get(field.name, old)!r} there, {new!r} here"
    if field.name == "compile":  # what it comes to on this machine is what counts
        told = "use_xla: False there, True here"
    return argv_for(field, value), told


@pytest.mark.parametrize(("cls", "field"), CIFAR_FLAGS, ids=name_of)
def test_only_settings_of_the_machine_may_change_when_a_run_resumes(cls, field, prepare, tmp_path):
    companions = COMPANIONS.get(field.name, [])
    before = prepare(tmp_path / "run", *companions)
    argv, told = changed(field, subset_per_class=256, num_views=2)
    if about(field).affects == MACHINE and field.name != "compile":
        assert prepare(tmp_path / "run", *companions, *argv) == before
    else:
        with pytest.raises(EkgError) as error:
            prepare(tmp_path / "run", *companions, *argv)
        assert str(error.value).splitlines()[1:] == [f"  {told}"]
        assert "name a new `train_path`, or start again with `overwrite`:" in str(error.value)


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        entry
        for entry in CIFAR_FLAGS
        if entry[1].name not in ("baseline_epoch", "latency_table", *reuse.TARGETS)
    ],
    ids=name_of,
)
def test_a_search_is_taken_over_if_only_training_settings_differ(
    cls, field, searched, prepare, tmp_path
):
    """However long the other run trained its network: the parameter file says it all."""
    source = searched[0]
    argv, told = changed(field, subset_per_class=256, num_views=2)
    companions = COMPANIONS.get(field.name, [])
    command = [
        *companions,
        *argv,
        "--trained_param",
        source / "baseline_param.pkl",
        "--search_from",
        source,
    ]
    if about(field).affects != SEARCH and field.name != "compile":
        assert prepare(tmp_path / "run", *command)["trained_param"] == files.sha256(
            source / "baseline_param.pkl"
        )
        assert RunFolder(tmp_path / "run").is_searched()
    else:
        with pytest.raises(EkgError) as error:
            prepare(tmp_path / "run", *command)
        lines, differing = (
            str(error.value).splitlines()[1:],
            set(companions[::2]) - {"--target_rate"},
        )
        assert (
            f"  {told}" in lines
            and len(lines) == 1 + len(differing)
            and not (tmp_path / "run").exists()
        )


@pytest.mark.parametrize("name", reuse.TARGETS)
def test_the_common_steps_of_a_search_toward_another_target_are_taken_over(
    name, searched, prepare, tmp_path
):
    source = searched[0]
    network = ["--trained_param", source / "baseline_param.pkl"]
    prepare(tmp_path / "run", f"--{name}", 0.9, *network, "--search_from", source)
    ours, theirs = RunFolder(tmp_path / "run"), RunFolder(source)
    taken = ours.history()
    assert not ours.is_searched()
    assert 1 <= len(taken) <= len(theirs.history())
    assert taken == theirs.history()[: len(taken)]


@pytest.mark.parametrize(
    ("argv", "is_taken"),
    [
        (["--weight_decay", 0.1], False),
        (["--accum", 2], False),
        (["--seed", 1], False),
        (["--search_precision", "bfloat16"], False),
        (["--precision", "bfloat16"], True),
        (["--batch_size", 64], True),
        (["--sync_bn"], True),
        (["--warmup_epoch", 1], True),
    ],
)
def test_settings_that_the_search_uses_cannot_change(searched, prepare, tmp_path, argv, is_taken):
    """The epoch before the search takes the weight decay; micro-batches and formats are those of
    the search, too.
    """
    command = [
        *argv,
        "--trained_param",
        searched[0] / "baseline_param.pkl",
        "--search_from",
        searched[0],
    ]
    if is_taken:
        prepare(tmp_path / "run", *command)
    else:
        with pytest.raises(
            EkgError,
            match="was searched with other arguments; repeat those, or leave `search_from` out",
        ):
            prepare(tmp_path / "run", *command)


def test_a_run_of_a_version_with_other_results_does_not_resume(prepare, tmp_path):
    arguments = prepare(tmp_path / "run")
    files.write_json(
        tmp_path / "run" / "arguments.json",
        {name: value for name, value in arguments.items() if name != "results_version"},
    )
    with pytest.raises(
        EkgError, match=r"other arguments.*\n  results_version: None there, \d+ here$"
    ):
        prepare(tmp_path / "run")


@pytest.mark.parametrize(
    ("teacher", "given", "expected"),
    [
        ("none", None, 1),
        ("single", None, 2),
        ("ensemble", None, 2),
        ("none", 2, 2),
        ("single", 1, 1),
        ("ensemble", 1, 1),
    ],
)
def test_the_views_follow_the_teacher_unless_they_are_given(teacher, given, expected):
    made = FineTuneSettings(finetune_teacher=teacher, num_views=given)
    assert made.views_of(small_jobs.make_large_data()) == expected


def test_the_views_of_a_run_are_in_its_arguments_and_cannot_change(prepare, tmp_path):
    labels = ("--finetune_teacher", "none")
    assert prepare(tmp_path / "labels", *labels)["num_views"] == 1
    assert prepare(tmp_path / "labels", *labels, "--num_views", 1)["num_views"] == 1
    with pytest.raises(EkgError, match=r":\n  num_views: 1 there, 2 here$"):
        prepare(tmp_path / "labels", *labels, "--num_views", 2)
    assert prepare(tmp_path / "two", *labels, "--num_views", 2)["num_views"] == 2


def test_the_settings_machinery_imports_nothing_of_the_library():
    """The settings themselves stand beside what they set, so that no import points up."""
    imports = [
        node.module
        for node in ast.walk(ast.parse(Path(settings.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ekg")
    ]
    assert imports == ["ekg.errors"]
