"""The queue of the proof: order, what is skipped, what resumes, and two processes at once."""

import fcntl

import pytest

from benchmarks.proof import runs, setting, work
from benchmarks.proof.__main__ import main, parse_args
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.run.folder import RunFolder
from ekg.run.lock import LOCK, held


@pytest.fixture
def place(tmp_path):
    return setting.Place("data", tmp_path / "work", tmp_path / "records", tmp_path / "env")


def finish(place, run):
    place.records.mkdir(parents=True, exist_ok=True)
    place.record(run).write_text("{}")


def test_every_run_has_a_name_of_its_own_and_the_decisive_ones_come_first():
    queue = runs.queue()
    names = [run.name for run in queue]
    assert (
        len(set(names))
        == len(names)
        == len({run.title for run in queue if run.seed == 0}) + sum(run.seed > 0 for run in queue)
    )
    assert names[:6] == [
        f"r20-0.45-ekg-{arm}-e{runs.EPOCHS}-s0"
        for arm in ("labels", "bank", "single", "clean", "five", "labels-v1")
    ]
    assert {run.seed for run in queue[:12]} == {0, 1}


def test_finished_runs_are_skipped_and_a_failure_leaves_the_others(place):
    todo = runs.queue()[:4]
    finish(place, todo[1])
    made = []

    def make(run):
        made.append(run)
        if run is todo[2]:
            return 2
        finish(place, run)
        return 0

    assert work.work_off(todo, place, make) == [todo[2].name]
    assert made == [todo[0], todo[2], todo[3]]
    made.clear()
    assert work.work_off(todo, place, make) == [todo[2].name] and made == [todo[2]]


def test_a_run_that_another_process_makes_is_left_to_it(place):
    todo, made = runs.queue()[:2], []
    folder = place.folder(todo[0])
    with held(folder):
        RunFolder.prepare(folder, {})
        assert work.state_of(todo[0], place) == work.RUNNING
        assert work.work_off(todo, place, lambda run: made.append(run) or finish(place, run)) == []
    assert made == [todo[1]]
    assert work.state_of(todo[0], place) == work.BEGUN  # a process that was killed holds no lock


def test_a_run_that_another_process_took_just_before_is_no_failure(place):
    todo = runs.queue()[:1]
    with held(place.folder(todo[0])):
        assert work.work_off(todo, place, lambda run: finish(place, run) or 2) == []


def test_a_stopped_queue_ends_after_the_run_that_was_stopped(place):
    todo, made = runs.queue()[:3], []

    def make(run):
        made.append(run)
        stopping.request(15)
        return 143

    try:
        with pytest.raises(stopping.Stopped):
            work.work_off(todo, place, make)
    finally:
        stopping.request(None)
    assert made == todo[:1]


def test_files_that_two_runs_share_are_made_by_one_at_a_time(tmp_path):
    with setting.alone(tmp_path / "search"):
        with open(tmp_path / "search" / LOCK) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "search" / LOCK) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_is_made_by_a_process_of_its_own_with_the_same_place(place, monkeypatch):
    commands = []
    monkeypatch.setattr(work, "run_process", lambda command: commands.append(command) or 0)
    run = runs.queue()[0]
    assert work.make_in_process(place)(run) == 0
    args = parse_args(commands[0][3:])
    assert (args.command, args.name, args.work, args.records) == (
        "one",
        run.name,
        place.work,
        place.records,
    )
    assert (args.data_path, args.peer_env, args.resnet56) == ("data", place.peer_env, None)


def test_the_status_counts_and_a_pattern_without_a_run_is_refused(place):
    finish(place, runs.queue()[0])
    argv = [
        "--work",
        str(place.work),
        "--records",
        str(place.records),
        "--only",
        f"*-ekg-labels-e{runs.EPOCHS}-s0",
    ]
    assert main(parse_args(["status", *argv])).splitlines() == [
        f"{runs.queue()[0].name}: finished",
        f"r20-0.3-ekg-labels-e{runs.EPOCHS}-s0: waiting",
        "1 finished, 1 waiting",
    ]
    with pytest.raises(EkgError, match="`only` none: no run has such a name"):
        main(parse_args(["run", "--only", "none"]))
    with pytest.raises(EkgError, match="r1: no run has this name"):
        main(parse_args(["one", "r1"]))
    with pytest.raises(SystemExit):
        parse_args(["run", "r1"])
