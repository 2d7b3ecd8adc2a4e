import io
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

import utils
from ekg.errors import EkgError
from tests.conftest import make_tiny_resnet


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    value = {"array": np.arange(6, dtype=np.float32).reshape(2, 3), "fortran": np.asfortranarray(np.eye(3)[:2]),
             "ints": np.array([[1, 2]], dtype=">i2"), "scalar": np.float64(1.5), "bool": np.array([True, False]),
             "list": [1, 2.5, "x", None, (True, b"\xff\x00")], "empty": np.zeros((0, 3)), "half": np.ones(2, np.float16)}
    file = tmp_path / "file.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    found = utils.load_pickle(file)
    assert found["list"] == value["list"]
    for name in set(value) - {"list"}:
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype and found[name].shape == value[name].shape


def test_parameters_return_from_their_file(tmp_path):
    model, other = make_tiny_resnet(), make_tiny_resnet()
    for weight in other.weights:
        weight.assign(weight * 0 + 7)
    utils.save_params(model, tmp_path / "p.pkl")
    utils.assign_params_(other, utils.load_params(tmp_path / "p.pkl"), "p.pkl")
    assert all((a == b).all() for a, b in zip(model.get_weights(), other.get_weights()))
    stored = pickle.loads((tmp_path / "p.pkl").read_bytes())  # noqa: S301  our own file
    assert type(stored) is dict and stored["fc/biases:0"].shape == (1, 3) and stored["stem_bn/gamma:0"].shape == (1, 1, 1, 6)


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


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fail(handle):
        handle.write(b"half")
        raise RuntimeError
    with pytest.raises(RuntimeError):
        utils.write_whole(file, fail)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    file = tmp_path / "lines.jsonl"
    utils.append_json_line(file, {"a": 1})
    with open(file, "a") as handle:
        handle.write('{"a": 2')
    assert utils.read_json_lines(file) == [{"a": 1}]
    utils.append_json_line(file, {"a": 3})
    assert utils.read_json_lines(file) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_is_named(tmp_path):
    """A flipped bit anywhere: the line is named, or, where it was the last line's end, that line counts as cut short."""
    file, lines = tmp_path / "lines.jsonl", [{"a": number, "loss": number / 7} for number in range(4)]
    for line in lines:
        utils.append_json_line(file, line)
    whole = file.read_bytes()
    for offset in range(len(whole)):
        file.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1:])
        number = whole[:offset].count(b"\n") + 1
        if offset == len(whole) - 1:
            assert utils.read_json_lines(file) == lines[:3]
            continue
        found = utils.read_json_lines(file, until_damage=True)
        if found != lines:  # the last digit of a number may mean nothing
            assert found == lines[:number - 1]
            with pytest.raises(EkgError, match=f"lines.jsonl: line {number} is damaged; delete it"):
                utils.read_json_lines(file)
    file.write_bytes(b'{"a": 1}\n')  # no checksum
    with pytest.raises(EkgError, match="line 1 is damaged"):
        utils.read_json_lines(file)


def test_damaged_json_is_named(tmp_path):
    file = tmp_path / "x.json"
    utils.write_json(file, {"rate": 0.45, "names": ["a", "b"]})
    assert utils.read_json(file) == {"rate": 0.45, "names": ["a", "b"]}
    whole = file.read_bytes()
    for offset in range(len(whole) - 1):
        for damaged in (whole[:offset], whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1:]):
            file.write_bytes(damaged)
            try:
                assert utils.read_json(file) == {"rate": 0.45, "names": ["a", "b"]}  # white space
            except EkgError as error:
                assert "x.json: damaged" in str(error)


def test_the_table_names_costs_and_rates():
    row = utils.Row("baseline", 0.5, 0.91234, 1.0, 1000, 2000, 2048, 1.5, 20.0)
    text = utils.format_table([row, utils.Row("slimmed", 0.6, 0.9, 0.99, 400, 900, 1024, 1.0, 10.0)])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["network", "loss", "top-1 %", "top-5 %", "params", "FLOPs", "rate", "file KiB", "ms, batch 1",
                        "ms, batch 256", "images/s"]
    assert lines[2] == ["baseline", "0.5000", "91.23", "100.00", "1,000", "2,000", "1.0000", "2", "1.50", "20.0", "12,800"]
    assert lines[3][:7] == ["slimmed", "0.6000", "90.00", "99.00", "400", "900", "0.4500"]


def test_user_errors_are_one_line_and_exit_code_2(capsys):
    def main(_):
        raise EkgError("it is wrong.")
    with pytest.raises(SystemExit) as exit_info:
        utils.run_script(main, lambda: None)
    assert exit_info.value.code == 2 and capsys.readouterr().err == "error: it is wrong.\n"


def test_published_python2_batches_are_read():
    """The bytes as Python 2 wrote them: str for array data, protocol 2."""
    data = (b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
            b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02K\x03\x86q\x09cnumpy\ndtype\nq\x0aU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\x0d("
            b"K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x06\x01\x02\xf0\x04\x05\x06q\x10tq\x11bu.")
    expected = pickle.load(io.BytesIO(data), encoding="bytes")  # noqa: S301  written above
    found = utils.parse_pickle(data, "batch", encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], expected[b"data"])
    assert found[b"data"].tolist() == [[1, 2, 240], [4, 5, 6]]


def test_items_are_taken_ahead_and_an_error_arrives_in_its_place():
    taken = []

    def items():
        for number in range(5):
            taken.append(number)
            yield number
        raise ValueError("after the last")
    found = utils.prefetched(items(), depth=2)
    assert next(found) == 0 and next(found) == 1
    with pytest.raises(ValueError, match="after the last"):
        for number in found:
            assert number in taken
    assert taken == list(range(5)) and list(utils.prefetched(range(3), depth=5)) == [0, 1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_end_a_loop_where_it_asks(monkeypatch, capsys, number, code):
    codes = []

    def leave(found):
        codes.append(found)
        raise SystemExit(found)
    monkeypatch.setattr(utils.os, "_exit", leave)
    monkeypatch.setattr(utils, "_stop", utils._StopRequest())
    before = {each: signal.getsignal(each) for each in utils.STOP_SIGNALS}
    steps = []

    def main(_):
        while len(steps) < 10:
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), number)
            assert utils.is_stopping() == (len(steps) >= 3)
            utils.check_stopped()
    try:
        with pytest.raises(SystemExit):
            utils.run_script(main, lambda: None)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert codes == [code] and len(steps) == 3
    assert f"stopped by {number.name}; the same command goes on" in capsys.readouterr().err


def test_asked_twice_by_ctrl_c_it_stops_at_once():
    stop = utils._StopRequest()
    stop.receive(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT, None)


def test_the_peak_memory_is_the_own_one_and_not_that_of_who_started_the_process():
    code = """import numpy as np, utils
before = utils.peak_memory_mib()
block = np.ones(2**25)
del block
print(before, utils.peak_memory_mib() - before)"""
    large = np.ones(2**27)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout  # noqa: S603
    before, growth = map(float, output.split())
    assert 50 < before < large.nbytes / 2**20 < utils.peak_memory_mib() and 240 < growth < 300
