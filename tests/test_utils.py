import argparse
import io
import logging
import os
import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import utils
from ekg.errors import EkgError
from ekg.io import files
from ekg.process import progress, stopping
from tests.helpers.damage import flip_bit_of
from tests.helpers.models import make_tiny_resnet, randomise_

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    value = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.eye(3)[:2]),
        "ints": np.array([[1, 2]], dtype=">i2"),
        "scalar": np.float64(1.5),
        "bool": np.array([True, False]),
        "list": [1, 2.5, "x", None, (True, b"\xff\x00")],
        "empty": np.zeros((0, 3)),
        "half": np.ones(2, np.float16),
    }
    file = tmp_path / "file.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    loaded = utils.load_pickle(file)
    assert loaded["list"] == value["list"]
    for name in set(value) - {"list"}:
        np.testing.assert_array_equal(loaded[name], value[name])
        assert loaded[name].dtype == value[name].dtype and loaded[name].shape == value[name].shape


def test_parameters_return_from_their_file(tmp_path):
    model, other = make_tiny_resnet(), make_tiny_resnet()
    for weight in other.weights:
        weight.assign(weight * 0 + 7)
    utils.save_params(model, tmp_path / "p.pkl")
    utils.assign_params_(other, utils.load_params(tmp_path / "p.pkl"), "p.pkl")
    assert all((a == b).all() for a, b in zip(model.get_weights(), other.get_weights()))
    stored = pickle.loads((tmp_path / "p.pkl").read_bytes())
    assert (
        type(stored) is dict
        and stored["fc/biases:0"].shape == (1, 3)
        and stored["stem_bn/gamma:0"].shape == (1, 1, 1, 6)
    )


def test_metadata_entries_are_left_out_and_others_named(tmp_path):
    file = tmp_path / "p.pkl"
    file.write_bytes(pickle.dumps({"__version__": "1.0", "a:0": np.ones(2)}))
    assert list(utils.load_params(file)) == ["a:0"]
    file.write_bytes(pickle.dumps({"a:0": np.ones(2), "b:0": "text"}))
    with pytest.raises(EkgError, match="\\['b:0'\\] holds no array"):
        utils.load_params(file)
    file.write_bytes(pickle.dumps({"a:0": np.array([np.nan])}))
    with pytest.raises(EkgError, match="a:0.*not finite"):
        utils.load_params(file)
    file.write_bytes(pickle.dumps({"a:0": np.array([1e300])}))
    with pytest.raises(EkgError, match="a:0.*not finite"):
        utils.load_params(file)
    file.write_bytes(pickle.dumps({"__a": np.ones(2)}))
    assert list(utils.load_params(file)) == ["__a"]


@pytest.mark.parametrize("content", [[1, 2], {}, {1: np.ones(2)}, "text"])
def test_a_pickle_that_is_no_parameter_file_is_named(tmp_path, content):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(EkgError, match="p.pkl: not a parameter file"):
        utils.load_params(tmp_path / "p.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EkgError, match="nothing.pkl: cannot be read"):
        utils.load_params(tmp_path / "nothing.pkl")


def test_a_model_is_left_as_it_is_if_anything_does_not_fit():
    model = make_tiny_resnet()
    params = utils.model_params(model)
    before = model.get_weights()
    params = {name: array + 1 for name, array in params.items()} | {"fc/kernel:0": np.zeros((2, 3))}
    with pytest.raises(EkgError):
        utils.assign_params_(model, params, "p")
    assert all((a == b).all() for a, b in zip(before, model.get_weights()))


def test_published_python2_batches_are_read():
    """The bytes as Python 2 wrote them: str for array data, protocol 2."""
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02K\x03\x86q\x09cnumpy\ndtype\nq\x0aU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\x0d("
        b"K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x06\x01\x02\xf0\x04\x05\x06q\x10tq\x11bu."
    )
    expected = pickle.load(io.BytesIO(data), encoding="bytes")
    batch = utils.parse_pickle(data, "batch", encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], expected[b"data"])
    assert batch[b"data"].tolist() == [[1, 2, 240], [4, 5, 6]]


def test_a_pickle_is_sealed(tmp_path):
    """Whoever reads a file as it is has its checksum, and any reader of pickles reads it."""
    utils.save_pickle(tmp_path / "p.pkl", {"a": [1, 2]})
    assert pickle.loads(files.read_sealed(tmp_path / "p.pkl")) == {"a": [1, 2]}
    assert utils.load_pickle(tmp_path / "p.pkl") == {"a": [1, 2]}
    flip_bit_of(tmp_path / "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: damaged, its checksum is wrong"):
        files.read_sealed(tmp_path / "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: not a readable pickle of plain data"):
        utils.load_pickle(tmp_path / "p.pkl")


# ---------------------------------------------------------------- running a script


@pytest.fixture
def handlers():
    """Puts this process's signal handlers back, and nobody asks it to end."""
    before = {number: signal.getsignal(number) for number in stopping.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping.request(None)


def test_arguments_that_an_error_names_get_their_flags():
    text = (
        "`data_path` /nowhere: `data_path` or `dataset` is wrong, `steps` and data_path are not "
        "flags, `not a name`."
    )
    assert utils.with_flags(text, {"data_path": 1, "dataset": 2, "seed": 3}) == (
        "--data_path /nowhere: --data_path or --dataset is wrong, `steps` and data_path are not "
        "flags, `not a name`."
    )
    assert utils.with_flags(text, ()) == text


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EkgError("`seed` and `steps` are wrong."), 2, "error: --seed and `steps` are wrong."),
        (
            OSError(28, "No space left on device", "/x"),
            2,
            "error: [Errno 28] No space left on device: '/x'",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM"),
            2,
            "error: out of memory; lower the batch size, or raise --accum if the script has it.",
        ),
        (FloatingPointError("loss became non-finite."), 1, "error: loss became non-finite."),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, handlers, error, code, line):
    def main(_):
        raise error

    with pytest.raises(SystemExit) as exit_info:
        utils.run_script(main, lambda: argparse.Namespace(seed=1))
    assert exit_info.value.code == code and capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)]
)
def test_signals_end_a_loop_where_it_asks(monkeypatch, capsys, handlers, number, code):
    codes, steps = [], []

    def leave(exit_code):
        codes.append(exit_code)
        raise SystemExit(exit_code)

    monkeypatch.setattr(os, "_exit", leave)

    def main(_):
        while len(steps) < 10:
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), number)
            assert stopping.requested() == (number if len(steps) >= 3 else 0)
            stopping.check()

    with pytest.raises(SystemExit):
        utils.run_script(main, lambda: argparse.Namespace(overwrite=True))
    assert codes == [code] and len(steps) == 3
    assert (
        f"stopped by {number.name}; the same command without --overwrite resumes"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------- names of weights


def make_convnext(name):
    """A block with a LayerScale, whose weight Keras names by a counter of the process."""
    from keras.src.applications.convnext import LayerScale

    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    x = LayerScale(0.5, 4, name="scale")(layers.LayerNormalization(name="norm")(x))
    return keras.Model(
        inputs, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x)), name=name
    )


def make_attentive(name):
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    x = layers.Bidirectional(layers.LSTM(3, name="recurrent"), name="both")(x)
    return keras.Model(inputs, layers.Dense(3, name="fc")(x), name=name)


def make_nested(name):
    """Two nested networks whose layers have equal names and shapes."""
    inputs, parts = keras.Input((8, 8, 3)), []
    for side in ("left", "right"):
        inside = keras.Input((8, 8, 3), name="image")
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(inside))
        parts.append(keras.Model(inside, x, name=side)(inputs))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")(parts))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x), name=name)


def make_adapted(name):
    inputs = keras.Input((8, 8, 3))
    normalise = layers.Normalization(name="normalise")
    normalise.adapt(np.random.default_rng(0).normal(5, 3, (20, 8, 8, 3)))
    x = layers.GlobalAveragePooling2D(name="pool")(
        layers.Conv2D(4, 3, name="conv")(normalise(inputs))
    )
    return keras.Model(inputs, layers.Dense(3, name="fc")(x), name=name)


@pytest.mark.parametrize("make", [make_convnext, make_attentive, make_nested, make_adapted])
def test_a_file_holds_every_weight_under_a_name_of_its_own_and_fits_a_second_network(
    tmp_path, make
):
    first, second = make("first"), make("second")
    randomise_(first)
    utils.save_params(first, tmp_path / "params.pkl")
    params = utils.load_params(tmp_path / "params.pkl")
    assert sum(array.size for array in params.values()) == first.count_params() and len(
        params
    ) == len(first.weights)
    utils.assign_params_(second, params, "params.pkl")
    inputs = np.random.default_rng(1).normal(size=(3, *first.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(second(inputs), first(inputs), rtol=1e-5, atol=1e-6)


def test_names_are_built_from_nested_models_and_layers():
    assert {"left/conv/kernel:0", "right/conv/kernel:0", "left/norm/moving_mean:0"} <= set(
        utils.model_params(make_nested("n"))
    )
    assert {"scale/gamma:0", "norm/beta:0"} <= set(utils.model_params(make_convnext("c")))
    assert {"attention/query_dense/kernel:0", "both/forward_layer/cell/kernel:0"} <= set(
        utils.model_params(make_attentive("a"))
    )


def test_weights_of_one_name_are_refused():
    """A parameter file writes "/" for "-", so that "a-b" and layer b of a nested model a would be
    one.
    """
    inside = keras.Input((4,))
    inner = keras.Model(inside, layers.Dense(4, name="b")(inside), name="a")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, name="a-b")(inner(inputs)), name="doubled")
    with pytest.raises(
        EkgError, match="`model` 'doubled' has 4 weights and 2 names for them in a parameter file"
    ):
        utils.model_params(model)


def test_a_mistake_on_the_command_line_is_one_line_with_a_hint(capsys):
    parser = utils.Parser(description="Something.")
    parser.add_argument("--number", type=int, default=3, help="a number")
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(["--number", "many"])
    assert exit_info.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: argument --number: invalid int value: 'many'. --help lists all arguments.\n"
    )
    assert "a number (default: 3)" in parser.format_help()


def test_tensorflow_is_imported_without_its_first_lines_and_others_are_passed_on():
    """In a process of its own; what else is written to the error stream meanwhile is seen."""
    program = (
        "import os, sys; sys.path.insert(0, os.getcwd()); import utils; os.write(2, b'after\\n');"
        "print(sys.modules['tensorflow'].__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tf.__version__ and done.stderr == "after\n"


@pytest.mark.parametrize("told", ["", "--quiet"])
def test_a_script_first_logs_its_command_and_fails_with_one_line(told):
    done = subprocess.run(
        [sys.executable, "export.py", "--model", "no such file", "--out", "x", *told.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    first, *others = done.stderr.splitlines()
    if not told:
        assert first == "export.py --model 'no such file' --out x: loading TensorFlow"
        first, *others = others
    assert (
        first.startswith("error: ")
        and "no such file" in first
        and not others
        and done.returncode == 2
    )


@pytest.mark.parametrize(
    "flag, expected", [("--quiet", ["W"]), ("", ["I", "W"]), ("--verbose", ["D", "I", "W"])]
)
def test_every_script_has_flags_for_how_much_is_logged(flag, expected, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("ekg"), "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "level", logging.WARNING)

    def main(args):
        log = logging.getLogger("ekg.something")
        log.debug("D")
        log.info("I")
        log.warning("W")
        with progress.progress_bar("bar", 1, "step") as bar:
            assert bar.disable == args.quiet

    utils.run_script(main, lambda: utils.Parser().parse_args(flag.split()))
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == expected


@pytest.mark.parametrize(
    "level, expected", [("2", ""), ("0", "I0000 00:00:17.1 12 a.cc:5] oneDNN\n")]
)
def test_other_lines_that_tensorflow_writes_on_import_are_shown(level, expected, tmp_path):
    """A stand-in for it that writes its first lines and one more, and then fails."""
    (tmp_path / "tensorflow.py").write_text(
        "import os; os.write(2, b'I0000 00:00:17.1 12 a.cc:5] oneDNN\\nE0000 no driver\\n'); "
        "raise ImportError('x')"
    )
    program = "import sys; sys.path[:0] = sys.argv[1:]; import utils"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": level},
    )
    assert done.returncode == 1 and done.stderr.startswith(f"{expected}E0000 no driver\nTraceback")
    assert done.stderr.endswith("ImportError: x\n")


def test_the_last_lines_of_an_aborted_import_are_shown(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os; os.write(2, b'F0000 needs AVX512\\n'); os.abort()"
    )
    program = "import sys; sys.path[:0] = sys.argv[1:]; import utils"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": "/nowhere"},
    )
    assert done.returncode == -signal.SIGABRT and done.stderr.startswith("F0000 needs AVX512\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "redirection",
    ["2>/dev/full", ">&- 2>&1", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"],
)
def test_streams_that_are_closed_or_full_change_no_exit_code(redirection):
    command = (
        f"{shlex.quote(sys.executable)} export.py --model 'no such file' --out x {redirection}"
    )
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_closed_stream_is_not_the_next_file_that_is_opened(tmp_path):
    program = (
        "import os, sys; sys.path.insert(0, os.getcwd()); import utils;"
        "from ekg.process import progress;"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); print(file.fileno(), flush=True);"
        "progress._Lines().write('a line'); print('nothing', file=sys.stderr); os.write(2, "
        "b'nothing')"
    )
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} 2>&-",
        shell=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 2 and (tmp_path / "file").read_text() == ""


def test_a_path_with_a_line_end_stays_on_the_line_of_its_error(capsys, handlers):
    def main(args):
        raise EkgError(f"`data_path` {args.data_path}: there is no such folder.")

    with pytest.raises(SystemExit):
        utils.run_script(main, lambda: argparse.Namespace(data_path="a\nb", other=1))
    assert capsys.readouterr().err.splitlines()[-1] == (
        r"error: --data_path a\nb: there is no such folder."
    )
