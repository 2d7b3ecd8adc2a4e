"""--precision auto takes bfloat16 where there are instructions for it and a step is faster, and a
run keeps what it took.
"""

import logging

import pytest

import ekg
from ekg.devices import kind
from ekg.devices.compute import AUTO_FORMAT, Compute
from ekg.distil.settings import FineTuneSettings
from ekg.network.supernet import Supernet
from ekg.run import precision
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.settings import JobSettings, RunSettings
from ekg.searching.settings import SearchSettings
from tests.helpers.models import make_data, make_tiny_resnet

SETTINGS = JobSettings(
    search=SearchSettings(target_rate=0.4),
    fine_tuning=FineTuneSettings(batch_size=16),
    run=RunSettings(precision=AUTO_FORMAT),
)


@pytest.fixture(params=["flags : fpu avx512f avx512_bf16", "Features : fp asimd bf16"])
def with_bfloat16(request, tmp_path, monkeypatch):
    path = tmp_path / "with"
    path.write_text(f"processor : 0\n{request.param}\n")
    monkeypatch.setattr(kind, "PROCESSORS", path)


@pytest.fixture
def without_bfloat16(tmp_path, monkeypatch):
    path = tmp_path / "without"
    path.write_text("processor : 0\nflags : fpu avx2 avx512_vnni notbf16\n")
    monkeypatch.setattr(kind, "PROCESSORS", path)


def make_job(folder, settings=SETTINGS):
    return Job(
        settings,
        make_data(),
        Supernet(make_tiny_resnet()),
        Compute(dtype=settings.run.precision),
        RunFolder(folder),
    )


def formats_of(job):
    return job.settings.run.precision, job.compute.dtype


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((1.0, 0.5), "bfloat16"), ((1.0, 0.99), "float32"), ((0.5, 1.0), "float32")],
)
def test_the_faster_step_decides(seconds, chosen, with_bfloat16, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision, "measure_steps", lambda job, dtypes: dict(zip(dtypes, seconds)))
    job = precision.resolved(make_job(tmp_path / "run"))
    assert formats_of(job) == (chosen, chosen)
    assert (
        f"precision {chosen}: a training step takes {seconds[0]:.3g} s in "
        f"float32, {seconds[1]:.3g} s in bfloat16" in (caplog.text)
    )


def test_nothing_is_measured_without_instructions_for_it(without_bfloat16, tmp_path, monkeypatch):
    monkeypatch.delattr(precision, "measure_steps")
    assert formats_of(precision.resolved(make_job(tmp_path / "run"))) == ("float32", "float32")


def test_a_run_that_resumes_keeps_its_format_and_one_that_starts_over_does_not(
    without_bfloat16, tmp_path
):
    RunFolder.create(tmp_path / "run", {"precision": "bfloat16"})
    assert formats_of(precision.resolved(make_job(tmp_path / "run"))) == ("bfloat16", "bfloat16")
    assert formats_of(precision.resolved(make_job(tmp_path / "run"), starts_anew=True)) == (
        "float32",
        "float32",
    )


def test_an_explicit_format_is_kept(with_bfloat16, tmp_path):
    job = make_job(tmp_path / "run", JobSettings(run=RunSettings(precision="float32")))
    assert precision.resolved(job) is job


def test_steps_are_measured_in_each_format_and_leave_the_network_as_it_is(tmp_path, monkeypatch):
    job, made = make_job(tmp_path / "run"), []
    original = precision.Trainer

    def make_trainer(*args, **options):
        made.append(options["options"].dtype)
        return original(*args, **options)

    monkeypatch.setattr(precision, "Trainer", make_trainer)
    before = [variable.numpy().copy() for variable in job.model.weights]
    seconds = precision.measure_steps(job, ("float32", "bfloat16"))
    assert list(seconds) == made == ["float32", "bfloat16"] and min(seconds.values()) > 0
    assert all((variable.numpy() == old).all() for variable, old in zip(job.model.weights, before))


def test_precision_auto_is_resolved_and_the_choice_reported(without_bfloat16, tmp_path):
    data = make_data()
    images = data.train.images.astype("float32") / 100
    ekg.prune(
        make_tiny_resnet(),
        (images, data.train.labels),
        target_rate=0.9,
        epochs=None,
        run={"precision": "auto"},
        search={"search_step": 0.4, "search_teacher": "none"},
        run_dir=tmp_path / "run",
        verbose=False,
    )
    assert RunFolder(tmp_path / "run").arguments()["precision"] == "float32"
