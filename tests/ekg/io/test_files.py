import errno
import io

import pytest

from ekg.errors import EkgError
from ekg.io import files
from tests.helpers.damage import flip_bit


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fail(handle):
        handle.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write_whole(file, fail)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


# ---------------------------------------------------------------- sealed files


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(range(256)) * 3, b"ends like a seal\nsha256:" + b"0" * 64 + b"\n"]
)
def test_sealed_bytes_return(tmp_path, data):
    files.write_sealed(tmp_path / "file", data)
    assert files.read_sealed(tmp_path / "file") == data


def test_any_damage_to_a_sealed_file_is_detected(tmp_path):
    file = tmp_path / "file"
    files.write_sealed(file, b"some bytes")
    sealed = file.read_bytes()
    damaged = [flip_bit(sealed, offset, bit) for offset in range(len(sealed)) for bit in (0, 5)]
    damaged += [sealed[:size] for size in range(len(sealed))] + [sealed + b"\n", sealed + sealed]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(EkgError, match="file: damaged, its checksum is wrong"):
            files.read_sealed(file)
    with pytest.raises(EkgError, match="nothing: cannot be read"):
        files.read_sealed(tmp_path / "nothing")


# ---------------------------------------------------------------- JSON


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    file = tmp_path / "lines.jsonl"
    files.append_json_line(file, {"a": 1})
    with open(file, "a") as handle:
        handle.write('{"a": 2')
    assert files.read_json_lines(file) == [{"a": 1}]
    files.append_json_line(file, {"a": 3})
    assert files.read_json_lines(file) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_is_named(tmp_path):
    """A flipped bit anywhere: the line is named, or, where it was the last line's end, that line
    counts as cut short.
    """
    file, lines = (
        tmp_path / "lines.jsonl",
        [{"a": number, "loss": number / 7} for number in range(4)],
    )
    for line in lines:
        files.append_json_line(file, line)
    whole = file.read_bytes()
    for offset in range(len(whole)):
        file.write_bytes(flip_bit(whole, offset, bit=0))
        number = whole[:offset].count(b"\n") + 1
        if offset == len(whole) - 1:
            assert files.read_json_lines(file) == lines[:3]
            continue
        good = files.read_json_lines(file, until_damage=True)
        if good != lines:  # the last digit of a number may mean nothing
            assert good == lines[: number - 1]
            with pytest.raises(EkgError, match=f"lines.jsonl: line {number} is damaged; delete it"):
                files.read_json_lines(file)
    file.write_bytes(b'{"a": 1}\n')  # no checksum
    with pytest.raises(EkgError, match="line 1 is damaged"):
        files.read_json_lines(file)


def test_damaged_json_is_named(tmp_path):
    file, value, noticed = tmp_path / "x.json", {"rate": 0.45, "names": ["a", "b"]}, 0
    files.write_json(file, value)
    assert files.read_json(file) == value
    whole = file.read_bytes()
    damaged = [whole[:size] for size in range(len(whole) - 1)]
    damaged += [flip_bit(whole, offset, bit=0) for offset in range(len(whole) - 1)]
    for data in damaged:
        file.write_bytes(data)
        try:
            assert files.read_json(file) == value  # white space
        except EkgError as error:
            assert "x.json: damaged; put the file back" in str(error)
            noticed += 1
    assert noticed > 0.8 * len(damaged)


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    assert (
        files.sha256(tmp_path / "file")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    "code, is_tolerated",
    [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False), (errno.EDQUOT, False)],
)
def test_a_file_system_may_lack_fsync_but_other_failures_are_raised(
    code, is_tolerated, tmp_path, monkeypatch
):
    def fail(_):
        raise OSError(code, "a reason")

    monkeypatch.setattr(files.os, "fsync", fail)
    for name, write in (
        ("whole", lambda path: files.write_json(path, {"a": 1})),
        ("lines", lambda path: files.append_json_line(path, {"a": 1})),
    ):
        if is_tolerated:
            write(tmp_path / name)
            assert (tmp_path / name).stat().st_size > 0
        else:
            with pytest.raises(
                EkgError,
                match=rf"{name}: cannot be written \(a reason\); fix that, and start the same",
            ):
                write(tmp_path / name)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("unfinished", ["", "{", '{"long": "' + "x" * 200_000])
def test_an_unfinished_line_of_any_length_is_replaced(tmp_path, unfinished):
    path = tmp_path / "lines.jsonl"
    lines = [{"step": 0, "text": "y" * 150_000}, {"step": 1}]
    for line in lines:
        files.append_json_line(path, line)
    with path.open("a") as file:
        file.write(unfinished)
    files.append_json_line(path, {"step": 2})
    assert files.read_json_lines(path) == [*lines, {"step": 2}]


def test_appending_a_line_reads_only_the_end_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    files.append_json_line(path, {"text": "y" * 10**6})
    read = []

    class Reading(io.FileIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(files, "open", lambda path, mode: Reading(path, mode), raising=False)
    files.append_json_line(path, {"step": 1})
    assert read == [files.READ_TOGETHER]
