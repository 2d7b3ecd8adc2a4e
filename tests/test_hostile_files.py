"""Files that a stranger sends: nothing in them runs, and whatever is wrong with them is one typed
error.
"""

import collections
import functools
import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

import utils
from dataloader import cifar
from ekg.errors import EkgError
from ekg.process.memory import peak_memory_mib
from tests.helpers.damage import mutate
from tests.helpers.models import make_tiny_resnet


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def touch(path):
    open(path, "w").close()


def attacks(marker):
    yield pickle.dumps({"a": Attack(os.system, (f"touch {marker}",))})
    yield pickle.dumps(Attack(eval, (f"open({str(marker)!r}, 'w')",)))
    yield pickle.dumps(Attack(getattr, (int, "__subclasses__")))
    yield pickle.dumps(np.array([Attack(os.system, (f"touch {marker}",))], dtype=object))
    yield pickle.dumps({"a": np.array([{}], dtype=object)})
    yield pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])})
    yield pickle.dumps({"a": np.array(["text"])})
    yield pickle.dumps(collections.OrderedDict(a=1))
    yield pickle.dumps({"a": np.ndarray})
    yield pickle.dumps({"a": np.dtype("f4")})
    yield b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    yield b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."
    yield b"\x80\x04r\xff\xff\xff\xff."  # a memo of four thousand million places
    yield b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa."  # eight exabytes of data
    yield b"(" * 100_000 + b"."
    yield b"]" * 50_000 + b"a" * 49_999 + b"."
    yield b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR."
    yield b""
    yield b"no pickle at all"
    good = pickle.dumps({"a": np.zeros((2, 3), np.float32)}, protocol=2)
    yield good[:-5]
    yield good.replace(b"K\x02K\x03", b"K\xffK\xff")  # declared larger than its bytes
    for name in (
        "(,)f4",
        "3 4f4",
        "(1,2",
        "f4,f4",
        "O8",
        "V4",
    ):  # NumPy would parse these as lists of types
        yield b"cnumpy\ndtype\n(X" + len(name).to_bytes(4, "little") + name.encode() + b"tR."
    yield (
        b"]q\x00" + b"".join(b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(60)) + b"h\x3c."
    )  # 2**60 lists
    yield shared_bytes()
    yield b"c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    yield b"c_codecs\nencode\n}X\x01\x00\x00\x00a\x88sb."  # sets an attribute of what is admitted
    yield b"ca b\n\x1b[31m\n."
    command = f"touch {marker}"
    yield pickle.dumps(Attack(functools.partial, (os.system, command)))
    yield pickle.dumps(
        {"a": Attack(pickle.loads, (pickle.dumps(Attack(os.system, (command,))),))}
    )  # a pickle in a pickle
    yield pickle.dumps({"a": np.ones(2)}) + pickle.dumps(
        Attack(os.system, (command,))
    )  # a second stream behind it
    yield pickle.dumps({"a": np.ones(2)}) + b"\nsha256:" + b"0" * 64 + b"\n"
    yield pickle.dumps(Attack(__import__, ("os",)))
    yield pickle.dumps(Attack(setattr, (dict, "x", 1)))
    yield pickle.dumps(Attack(exec, (f"open({str(marker)!r}, 'w')",)))
    yield pickle.dumps(Attack(touch, (str(marker),)))
    yield pickle.dumps(Attack(np.load, (str(marker),)))
    yield pickle.dumps(Attack(np.memmap, (str(marker), "u1", "w+", 0, (1,))))
    yield b"cnumpy\nndarray\n(I4000000000\nI9\ntR."  # an allowed class, called for forty gigabytes
    yield (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I-1\ntcnumpy\ndtype\n(S'f4'\ntRI00\nS''\ntb."
    )
    yield b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'x'\ntR."
    yield b"cnumpy._core.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntS'b'\ntR."
    yield b"c__builtin__\nbytes\n(I4000000000\ntR."
    yield b"cnumpy\ndtype\n(S'f4'\ntR}(S'__reduce__'\ncos\nsystem\nsb."
    yield b"(dS'a'\n" + b"(" * 900 + b"t" * 900 + b"s."  # nine hundred tuples, one in the other
    yield b"\x80\x02(" + b"K\x01" * 200_000 + b"l" + b"2" * 200_000 + b"t."
    yield b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f."  # a frame of eight exabytes
    yield b"P1\n."  # a persistent object
    yield b"\x80\x02\x82\x01."  # an extension registry's


def shared_bytes():
    """One megabyte that a thousand arrays are made of: a thousand megabytes."""
    make = (
        b"cnumpy._core.numeric\n_frombuffer\n(h\x01cnumpy\ndtype\n(X\x02\x00\x00\x00u1tRJ"
        + (1 << 20).to_bytes(4, "little")
        + b"\x85X\x01\x00\x00\x00CtR"
    )
    return (
        b"\x80\x05](B"
        + (1 << 20).to_bytes(4, "little")
        + bytes(1 << 20)
        + b"q\x01"
        + make * 1000
        + b"e."
    )


NUM_ATTACKS = len(list(attacks("nowhere")))


@pytest.mark.parametrize("number", range(NUM_ATTACKS))
def test_only_plain_data_is_accepted(tmp_path, number):
    marker = tmp_path / "executed"
    file = tmp_path / "file.pkl"
    file.write_bytes(list(attacks(marker))[number])
    with pytest.raises(EkgError, match="file.pkl: not a ") as error:
        utils.load_params(file)
    assert not marker.exists() and str(error.value).isprintable()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "p.pkl"
    utils.save_params(make_tiny_resnet(), path)
    return path


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_thousand_mutations_end_in_typed_errors(good, tmp_path, is_sealed):
    """With its checksum every change is noticed; without it a file may still be read, as other
    numbers.
    """
    sealed = good.read_bytes()
    data = sealed if is_sealed else sealed[: sealed.rindex(b"\nsha256:")]
    expected, rng, path, noticed = (
        utils.load_params(good),
        np.random.default_rng(0),
        tmp_path / "m.pkl",
        0,
    )
    for _ in range(1000):
        damaged = mutate(data, rng)
        path.write_bytes(damaged)
        try:
            params = utils.load_params(path)
        except EkgError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            noticed += 1
            continue
        is_same = params.keys() == expected.keys() and all(
            (params[name] == expected[name]).all() for name in expected
        )
        assert not is_sealed or is_same
        assert all(
            type(array) is np.ndarray and array.dtype == np.float32 for array in params.values()
        )
    assert noticed > (950 if is_sealed else 300)


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_archives_are_read_in_memory_alone(tmp_path):
    """Paths that leave the folder, links and devices: nothing of them appears anywhere."""
    outside = tarfile.TarInfo("../../escaped")
    absolute = tarfile.TarInfo(str(tmp_path / "absolute"))
    link, device = (
        tarfile.TarInfo("cifar-10-batches-py/data_batch_1"),
        tarfile.TarInfo("cifar-10-batches-py/test_batch"),
    )
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    path = tmp_path / "inside" / "x.tar.gz"
    path.parent.mkdir()
    archive(path, (outside, b"x"), (absolute, b"x"), (link, b""), (device, b""))
    with pytest.raises(EkgError, match="holds no file cifar-10-batches-py/data_batch_1"):
        cifar.load("CIFAR10", path)
    assert {entry.name for entry in tmp_path.rglob("*")} == {"inside", "x.tar.gz"}


def test_an_archive_that_unpacks_to_more_than_there_can_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 2**20)
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes(2**21))
    message = (
        "^`data_path` [^`]*x.tar.gz: unpacks to more than 1,048,576 bytes[^`]*; get it again.$"
    )
    with pytest.raises(EkgError, match=message):
        cifar.load("CIFAR10", path)


def test_a_sparse_file_of_an_archive_is_not_filled(tmp_path):
    """Some hundred bytes that stand for three gigabytes."""
    name, size = b"cifar-10-batches-py/data_batch_1", 3 * 2**30
    header = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % size  # the size that it has with its holes
    header[386:410] = b"%011o\0" % size + b"%011o\0" % 0  # one piece, at the end, of no bytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(bytes(header) + bytes(1024))
    before = peak_memory_mib()
    with pytest.raises(
        EkgError,
        match="its file 'cifar-10-batches-py/data_batch_1' is sparse, so it is not CIFAR's",
    ):
        cifar.load("CIFAR10", tmp_path / "x.tar.gz")
    assert peak_memory_mib() - before < 100
