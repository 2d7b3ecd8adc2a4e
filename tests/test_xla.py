"""Every function of a job that is compiled where there is a GPU compiles with XLA on the CPU, too,
and whole.

What falls back to its plain form is a failure here. The network is small: compiling it takes most
of the time.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.data.dataset import Batches, TrainingBatches
from ekg.deploy.keras_file import KerasFile
from ekg.devices import compute
from ekg.distil import bank, losses
from ekg.graph.execute import pure_forward
from ekg.landscape.hessian import model_landscape
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.searching import criteria
from ekg.searching.history import HistoryEntry
from ekg.train.batch_norm_statistics import estimate_statistics_
from ekg.train.evaluate import evaluate
from ekg.train.step import StepOptions, Trainer
from tests.helpers import small_jobs
from tests.helpers.comparisons import make_objective, mirrored
from tests.helpers.models import make_data, randomise_

XLA = ekg.Compute(use_xla=True)
LIBRARY = Path(ekg.__file__).parent


@pytest.fixture
def made(monkeypatch):
    """Every compute.Compiled that is made, by name; one that falls back fails the test."""
    functions, begin = {}, compute.Compiled.__init__

    def init(self, make, name, use_xla):
        begin(self, make, name, use_xla)
        functions.setdefault(name, []).append(self)

    def fail(text, *values):
        raise AssertionError(text % values)

    monkeypatch.setattr(compute.Compiled, "__init__", init)
    monkeypatch.setattr(compute.logger, "warning", fail)
    return functions


def check(made, *names):
    """The functions with these words in their names, and no others, were made; each ran,
    compiled.
    """
    assert all(any(word in name for word in names) for name in made), sorted(made)
    for word in names:
        found = [
            function for name, functions in made.items() if word in name for function in functions
        ]
        assert found and all(function.is_compiled for function in found), word
        assert any(function.count_traces() for function in found), word


def network():
    return randomise_(small_jobs.build(None, 3))


@pytest.fixture
def data():
    return make_data(num_train=24, num_test=12)


def batches(data, size=12):
    return Batches(data.test, data.normalise, size)


SEARCH = (
    "normalisation",
    "sum of the search's losses",
    "importance",
    "sensitivity of single images",
    "gradients of the weights",
    "of the supernet",
)


def test_the_functions_of_the_search(made, data):
    objective = make_objective(network(), data, batch_size=12, use_xla=True)
    whole = objective.supernet.whole()
    objective.add_knowledge(whole)
    for name in ("ekg", "gbn", "taylor"):
        criteria.score_channels(name, criteria.CriterionContext(objective, whole, 0))
    objective.scores(whole, [(0, whole.with_width(0, 0.5))])
    check(made, *SEARCH)


def fine_tuning(data, teacher, model):
    """Returns (loss function, further arguments of a Trainer) of fine-tuning with a teacher."""
    is_single = teacher == "single"
    loss_fn = losses.fine_tuning(
        data, teacher, 4.0, pure_forward(model) if is_single else None, 0.1
    )
    return loss_fn, {"constants": model if is_single else ()}


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("ensemble", {}),
        ("single", {"accum": 2}),
        ("none", {"dtype": "bfloat16"}),
        ("plain", {}),
        ("baseline", {}),
    ],
)
def test_the_training_step_with_each_teacher(made, data, teacher, options):
    model = network()
    if teacher in ("plain", "baseline"):
        loss_fn, further = (
            getattr(losses, teacher)(data),
            {"update_statistics": teacher == "baseline"},
        )
    else:
        loss_fn, further = fine_tuning(data, teacher, model)
    with mirrored(1).scope():
        trainer = Trainer(
            mirrored(1),
            network(),
            loss_fn,
            weight_decay=1e-3,
            options=StepOptions(use_xla=True, **options),
            **further,
        )
    views = {"plain": 0, "baseline": 1}.get(teacher, 2)
    batch = next(TrainingBatches(data, 8, 0, num_views=views).epoch(0))
    if teacher == "ensemble":
        batch["bank"] = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    assert np.isfinite(float(trainer.step(batch, 0.01)["loss"]))
    check(made, "training step")


def test_evaluation(made, data):
    evaluate(network(), batches(data), XLA)
    check(made, "evaluation step")


def test_statistics_of_norms(made, data):
    estimate_statistics_(network(), batches(data), use_xla=True)
    check(made, "pass for batch norm statistics")


def test_the_memory_bank(made, data, tmp_path):
    supernet = ekg.Supernet(network())
    teachers = [HistoryEntry(0, None, supernet.whole(), 1.0, 0.1, 0.5, 0.0, 1, 0.0)]
    bank.build_bank(tmp_path / "bank", supernet, teachers, batches(data), XLA)
    check(made, "forward pass of the memory bank")


@pytest.mark.parametrize(
    "make",
    [
        lambda data: model_landscape(network(), batches(data), batch_statistics=True, use_xla=True),
        lambda data: model_landscape(network(), batches(data), parameters="all", use_xla=True),
        lambda data: MaskedLandscapes(
            supernet := ekg.Supernet(network()), batches(data), use_xla=True
        )(supernet.whole()),
    ],
    ids=["with statistics of the batch", "of all parameters", "of a mask"],
)
def test_the_landscape(made, data, make):
    landscape = make(data)
    landscape.loss(landscape.point)
    landscape.gradient(landscape.point)
    landscape.product(np.ones(landscape.dimension))
    check(made, "loss of the landscape", "gradient of the landscape", "Hessian-vector product")


def test_the_forward_pass_whose_latency_is_measured(made):
    KerasFile(use_xla=True).timed(network(), 2)()
    check(made, "forward pass")


def test_a_function_that_falls_back_would_be_noticed(made):
    function = compute.compiled(
        lambda x: tf.strings.length(tf.strings.as_string(x)), "function of texts", True
    )
    with pytest.raises(AssertionError, match="XLA cannot compile the function of texts"):
        function(tf.constant(1.0))


# The calls that make compiled functions: where another one is added, it gets a test above.
CALLS = {
    "deploy/keras_file.py": 1,
    "devices/compute.py": 1,
    "distil/bank.py": 1,
    "landscape/hessian.py": 3,
    "searching/evaluator.py": 6,
    "train/batch_norm_statistics.py": 1,
    "train/evaluate.py": 1,
    "train/step.py": 1,
}


def test_these_are_all_compiled_functions():
    found = {}
    for path in LIBRARY.rglob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        count = sum(
            ast.unparse(call.func).rpartition(".")[2] in ("compiled", "Compiled") for call in calls
        )
        if count:
            found[path.relative_to(LIBRARY).as_posix()] = count
    assert found == CALLS
