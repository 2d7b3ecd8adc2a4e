"""What the last digits of a run depend on: kept, named where it differs, refused if asked."""

import logging
import re

import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.devices import kind
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.graph.cutting import kernel_norm
from ekg.run import environment
from tests.helpers.digits import QUICK, digits, network, softmax


@pytest.fixture
def cores(monkeypatch):
    return lambda count: monkeypatch.setattr(environment, "count_cores", lambda: count)


def here():
    return environment.of_team(Team(tf.distribute.OneDeviceStrategy(kind.default_device())))


def prune(folder, **run):
    return ekg.prune(
        network(softmax), digits(), epochs=None, target_rate=0.9, run_dir=folder, run=run, **QUICK
    )


def test_a_run_that_resumes_on_other_cores_names_it_and_strict_refuses(
    tmp_path, cores, monkeypatch, caplog
):
    file, message = (
        tmp_path / "run" / "environments.jsonl",
        "TF_ENABLE_ONEDNN_OPTS 0 instead of 1; 1 core instead of 2",
    )
    cores(2)
    prune(tmp_path / "run", strict=True)
    environment.keep(file, here(), is_strict=True)  # where it began
    assert "the last digits" not in caplog.text and len(file.read_text().splitlines()) == 1
    cores(1)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    prune(tmp_path / "run", strict=True)  # it is finished: its table is shown, and nothing computed
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(EkgError, match=f"run: resumes with {message}; `strict` refuses that"):
        prune(tmp_path / "run", strict=True)
    environment.keep(file, here(), is_strict=False)
    assert f"resumes with {message}: the last digits may differ." in caplog.text
    cores(2)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    with pytest.raises(
        EkgError, match="resumes with TF_ENABLE_ONEDNN_OPTS 1 instead of 0; 2 cores instead of 1"
    ):
        prune(tmp_path / "run", strict=True)  # a part of it was computed elsewhere


def test_a_change_of_instructions_or_gpus_is_reported(tmp_path, monkeypatch):
    def describe(flags, *gpus):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} vmx\n")
        monkeypatch.setattr(kind, "PROCESSORS", tmp_path / "cpuinfo")
        monkeypatch.setattr(kind, "gpu_names", lambda: list(gpus))
        return environment.of_team(Team())

    environment.keep(
        tmp_path / "e", describe("avx2 fma avx512f avx512_bf16", "A100"), is_strict=True
    )
    message = (
        "resumes with GPUs [] instead of ['A100']; instructions avx512_bf16 avx512f there and "
        "not here"
    )
    with pytest.raises(EkgError, match=re.escape(message)):
        environment.keep(tmp_path / "e", describe("avx2 fma"), is_strict=True)


def test_a_worker_on_another_machine_is_named(tmp_path, monkeypatch, caplog):
    team = Team()
    monkeypatch.setattr(
        Team,
        "gather_texts",
        lambda self, text: [
            text,
            text.replace(f'"cores": {environment.count_cores()}', '"cores": 77'),
        ],
    )
    here = environment.of_team(team)
    with caplog.at_level(logging.WARNING):
        environment.keep(tmp_path / "e", here, is_strict=False)
        environment.keep(tmp_path / "e", here, is_strict=False)
    assert (
        caplog.text.count("worker 1 computes with 77 cores instead of") == 2
        and "resumes" not in caplog.text
    )
    assert len((tmp_path / "e").read_text().splitlines()) == 1


def test_the_blas_kernel_of_numpy_is_recorded():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    kernels = {
        library["architecture"]
        for library in threadpoolctl.threadpool_info()
        if library["internal_api"] == "openblas" and "numpy" in library["filepath"]
    }
    if not kernels:
        pytest.skip("NumPy has no OpenBLAS here")
    assert kernels == {environment.blas_kernel()}


def test_norms_are_summed_in_float64_without_blas(monkeypatch):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 128)).astype(np.float32)
    monkeypatch.setattr(np, "dot", None)
    monkeypatch.setattr(np.linalg, "norm", None)
    exact = float(np.sqrt(np.sum(np.asarray(kernel, np.longdouble) ** 2)))
    assert kernel_norm(kernel) == pytest.approx(exact, rel=1e-14)
