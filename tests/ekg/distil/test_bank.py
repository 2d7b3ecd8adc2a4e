import errno
import shutil

import numpy as np
import pytest

import ekg
from ekg.data.dataset import Batches
from ekg.distil import bank, bank_files
from ekg.process import stopping
from tests.helpers.comparisons import mirrored, random_subnetwork
from tests.helpers.damage import flip_bit_of
from tests.helpers.models import make_tiny_resnet, randomise_

# ---------------------------------------------------------------- which sub-networks teach


def test_teachers_have_evenly_spaced_losses_and_the_first_is_the_best():
    # Aims: 0.1, 0.24, 0.38, 0.52, 0.66, from 0.1 to 0.8: the last network's 0.9 does not count.
    # The nearest to 0.38 that is left is 0.45, by .07, and to 0.66 0.6, by .06.
    losses = [0.3, 0.1, 0.25, 0.45, 0.5, 0.8, 0.6, 0.9]
    assert bank.select_teachers(losses, 5) == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("last", [0.0, 0.05, 0.9, 50.0])
def test_the_loss_of_the_last_network_does_not_change_the_aims(last):
    # Aims: 0.1, 0.35, 0.6, 0.85, from 0.1 to 1.1
    assert bank.select_teachers([0.1, 0.2, 0.4, 0.5, 0.8, 1.1, last], 4) == [0, 2, 3, 4]


def test_where_no_step_was_taken_the_whole_network_teaches():
    assert bank.select_teachers([0.4], 1) == [0]


def test_no_subnetwork_teaches_twice(caplog):
    assert bank.select_teachers([0.1, 0.11, 0.12, 0.9], 3) == [0, 1, 2]
    assert not caplog.records
    assert bank.select_teachers([0.2, 0.1, 0.9], 5) == [1, 0]
    assert (
        "the search found 2 interim sub-networks, so the bank holds 2 teachers instead of 5"
        in caplog.text
    )


# ---------------------------------------------------------------- what a bank holds


def test_cut_teachers_give_the_same_logits_as_masked_ones(
    tmp_path, tiny_data, teachers, monkeypatch
):
    masked = build(tmp_path / "masked", teachers, tiny_data)  # five batches are few
    monkeypatch.setattr(bank, "FEW_BATCHES", 5)
    cut = build(tmp_path / "cut", teachers, tiny_data)
    np.testing.assert_allclose(cut.logits, masked.logits, rtol=1e-4, atol=1e-5)
    assert (cut.logits != masked.logits).any()


def entry_of(step, subnetwork):
    return ekg.HistoryEntry(step, None, subnetwork, 1.0, 0.1 * step, 0.5, 0.0, 1, 0.0)


@pytest.fixture
def teachers(tiny_resnet):
    """A supernet and three of its sub-networks as history entries."""
    supernet = ekg.Supernet(tiny_resnet)
    return supernet, [entry_of(seed, random_subnetwork(supernet, seed)) for seed in range(3)]


def describe(supernet, data, entries):
    return bank_files.describe(supernet, Batches(data.train, data.normalise, 20), entries)


def build(folder, teachers, data, batch_size=20, compute=None):
    bank.build_bank(folder, *teachers, Batches(data.train, data.normalise, batch_size), compute)
    return bank.open_bank(folder)


@pytest.mark.parametrize("few_batches", [bank.FEW_BATCHES, 0])
def test_the_logits_of_a_teacher_in_another_bank_are_copied(
    tmp_path, tiny_data, teachers, monkeypatch, few_batches
):
    """Masked networks, or networks that are cut out: what is copied is what would be computed."""
    monkeypatch.setattr(bank, "FEW_BATCHES", few_batches)
    monkeypatch.setattr(bank_files, "BLOCK_ROWS", 20)
    supernet, history = teachers
    batches = Batches(tiny_data.train, tiny_data.normalise, 20)
    build(tmp_path / "other", (supernet, [history[2], history[1]]), tiny_data)
    asked = [history[1], entry_of(3, random_subnetwork(supernet, 3)), history[2]]
    build(tmp_path / "alone", (supernet, asked), tiny_data)
    expected = (tmp_path / "alone" / bank_files.ARRAY_FILE).read_bytes()

    computed, teach = [], bank._teach

    def watched(supernet, entries, *args):
        computed.append([entry.step for entry in entries])
        return teach(supernet, entries, *args)

    monkeypatch.setattr(bank, "_teach", watched)

    def built(name, *sources):
        bank.build_bank(tmp_path / name, supernet, asked, batches, sources=sources)
        return (tmp_path / name / bank_files.ARRAY_FILE).read_bytes()

    other = (tmp_path / "other", history)
    assert built("copied", other) == expected and computed.pop() == [3]
    with open(tmp_path / "copied" / bank_files.ARRAY_FILE, "r+b") as file:
        file.truncate(len(expected) // 2)  # as after a kill
    assert built("copied", other) == expected and computed.pop() == [3]
    whole = (tmp_path / "alone", [*history, asked[1]])
    assert built("whole", other, whole) == expected and computed.pop() == []
    flip_bit_of(tmp_path / "other" / bank_files.ARRAY_FILE)
    assert built("damaged", other) == expected and computed.pop() == [1, 3, 2]


def test_a_bank_of_other_weights_gives_no_logits(tmp_path, tiny_data, teachers, tiny_resnet):
    supernet, history = teachers
    build(tmp_path / "other", teachers, tiny_data)
    randomise_(tiny_resnet, seed=5)
    info = describe(ekg.Supernet(tiny_resnet), tiny_data, history)
    assert bank_files.find_known(info, history, [(tmp_path / "other", history)]) == []


def test_rows_belong_to_their_images_after_shuffling(tmp_path, tiny_data, teachers):
    """Every row that fine-tuning reads is what the teachers say of the image beside it, told by its
    pixels.
    """
    built = build(tmp_path / "bank", teachers, tiny_data)
    assert built.logits.shape == (96, 3, 3) and built.logits.dtype == np.float32
    logits_of = {}
    for start, stop in (
        (0, 19),
        (19, 38),
        (38, 57),
        (57, 76),
        (76, 96),
    ):  # batches of at most 20, of even size
        images = tiny_data.train.images[start:stop]
        logits = np.stack(
            [
                teachers[0].logits(tiny_data.normalise(images), teacher.subnetwork)
                for teacher in teachers[1]
            ],
            axis=1,
        )
        logits_of.update({image.tobytes(): row for image, row in zip(images, logits)})
    assert len(logits_of) == 96
    for batch in tiny_data.epoch(32, seed=5, epoch=0):
        rows = built.rows(batch["index"])
        assert rows.dtype == np.float32 and type(rows) is np.ndarray
        expected = np.stack([logits_of[image.tobytes()] for image in batch["images"]])
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_read_by_image_in_any_order_of_writing(tmp_path, tiny_data, teachers):
    supernet, entries = teachers[0], teachers[1][:1]
    order = np.random.default_rng(0).permutation(96)
    batches = Batches(tiny_data.train, tiny_data.normalise, 48, order)
    bank.build_bank(tmp_path, supernet, entries, batches)
    built = bank.open_bank(tmp_path, batches)
    for numbers in (order[:48], order[48:]):
        images = tiny_data.normalise(tiny_data.train.images[numbers])
        expected = supernet.logits(images, entries[0].subnetwork)
        np.testing.assert_allclose(built.rows(numbers)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_rows_are_gathered_in_the_order_asked_for(tmp_path):
    array = np.random.default_rng(0).normal(size=(500, 2, 3)).astype(np.float32)
    (tmp_path / bank_files.ARRAY_FILE).write_bytes(
        bank_files.header(array.shape, np.float32) + array.tobytes()
    )
    index = np.random.default_rng(1).integers(0, 500, 150)
    np.testing.assert_array_equal(bank.open_bank(tmp_path).rows(index), array[index])


def test_many_classes_are_kept_in_half_precision(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(bank_files, "HALF_PRECISION_NUMBERS", 3)
    supernet = ekg.Supernet(make_tiny_resnet())
    teachers = supernet, [entry_of(0, supernet.whole())]
    built = build(tmp_path, teachers, tiny_data, batch_size=96)
    expected = supernet.logits(tiny_data.normalise(tiny_data.train.images), supernet.whole())
    assert built.logits.dtype == built.rows(np.array([1])).dtype == np.float16
    np.testing.assert_allclose(built.logits[:, 0], expected, rtol=1e-3, atol=1e-3)
    supernet.model.get_layer("fc").bias.assign([1e5, 0, 0])
    with pytest.raises(
        FloatingPointError, match="logits of the images 0 to 95 are not finite as float16"
    ):
        build(tmp_path / "other", teachers, tiny_data, batch_size=96)


def test_a_team_writes_the_same_bank(tmp_path, tiny_data, teachers):
    """Five batches among three members: the last round is not full."""
    for name, team in (("alone", ekg.Team()), ("team", ekg.Team(mirrored(3)))):
        build(tmp_path / name, teachers, tiny_data, compute=ekg.Compute(team))
    assert (tmp_path / "team" / "logits.npy").read_bytes() == (
        tmp_path / "alone" / "logits.npy"
    ).read_bytes()


# ---------------------------------------------------------------- its files


def test_a_bank_is_valid_for_its_own_data_and_teachers_only(tmp_path, tiny_data, teachers):
    supernet, entries = teachers
    info = describe(supernet, tiny_data, entries)
    assert bank_files.count_good(tmp_path, info) == 0
    build(tmp_path, teachers, tiny_data)
    assert bank_files.count_good(tmp_path, info) == 96
    array = (tmp_path / "logits.npy").read_bytes()
    with pytest.raises(ekg.EkgError, match="belongs to another run, its teachers differ"):
        bank_files.count_good(tmp_path, describe(supernet, tiny_data, entries[:2]))
    randomise_(supernet.model, seed=7)
    tiny_data.train.labels[:] = tiny_data.train.labels[::-1].copy()
    with pytest.raises(ekg.EkgError, match="belongs to another run, its network and data differ"):
        bank_files.count_good(tmp_path, describe(supernet, tiny_data, entries))
    assert (tmp_path / "logits.npy").read_bytes() == array


def test_a_stopped_bank_resumes_after_its_last_block(tmp_path, tiny_data, teachers, monkeypatch):
    """96 rows in batches of at most 20 and blocks of at most 40: 38, 38 and 20 rows."""
    monkeypatch.setattr(bank_files, "BLOCK_ROWS", 40)
    build(tmp_path / "whole", teachers, tiny_data)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise stopping.Stopped(15)

    with monkeypatch.context() as patch:
        patch.setattr(stopping, "check", stop)
        with pytest.raises(stopping.Stopped):
            build(tmp_path / "bank", teachers, tiny_data)
    info = describe(teachers[0], tiny_data, teachers[1])
    assert bank_files.count_good(tmp_path / "bank", info) == 57
    with open(tmp_path / "bank" / "logits.npy", "ab") as file:
        file.write(b"half a row")  # as a kill within a write leaves
    build(tmp_path / "bank", teachers, tiny_data)
    assert (tmp_path / "bank" / "logits.npy").read_bytes() == (
        tmp_path / "whole" / "logits.npy"
    ).read_bytes()
    assert bank_files.count_good(tmp_path / "bank", info) == 96


@pytest.mark.parametrize("name", ["logits.npy", "blocks.jsonl", "bank.json"])
def test_a_damaged_bank_is_rebuilt_from_its_first_bad_block(
    tmp_path, tiny_data, teachers, monkeypatch, caplog, name
):
    monkeypatch.setattr(bank_files, "BLOCK_ROWS", 20)
    build(tmp_path, teachers, tiny_data)
    info = describe(teachers[0], tiny_data, teachers[1])
    array, whole = (tmp_path / "logits.npy").read_bytes(), (tmp_path / name).read_bytes()
    for cut in (False, True):
        for offset in np.linspace(0, len(whole) - 2, 50).astype(int):
            caplog.clear()
            damaged = (
                whole[:offset]
                if cut
                else whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :]
            )
            (tmp_path / name).write_bytes(damaged)
            good = bank_files.count_good(tmp_path, info)
            assert good in (0, 19, 38, 57, 76) and (
                f"{name}: damaged" in caplog.text or "rows are intact" in caplog.text
            )
            if name == "logits.npy" and offset >= 128:
                assert good == max(
                    stop for stop in (0, 19, 38, 57, 76) if 128 + stop * 36 <= offset
                )
            (tmp_path / name).write_bytes(whole)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    build(tmp_path, teachers, tiny_data)
    assert (tmp_path / "logits.npy").read_bytes() == array and bank_files.count_good(
        tmp_path, info
    ) == 96


def test_a_disk_without_room_is_named_before_anything_is_written(
    tmp_path, tiny_data, teachers, monkeypatch
):
    monkeypatch.setattr(
        bank_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3455)
    )
    with pytest.raises(
        ekg.EkgError, match="needs 3,456 bytes and 3,455 are free.* or lower `num_teacher`"
    ):
        build(tmp_path, teachers, tiny_data)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path, tiny_data, teachers):
    (tmp_path / "file").write_text("")
    with pytest.raises(ekg.EkgError, match="file/bank: cannot be written"):
        build(tmp_path / "file" / "bank", teachers, tiny_data)


def test_a_file_system_without_memory_maps_works(
    tmp_path, tiny_data, teachers, monkeypatch, caplog
):
    built, index = build(tmp_path / "bank", teachers, tiny_data), np.array([5, 3, 95])
    load = np.load

    def load_without_maps(path, mmap_mode=None, **options):
        if mmap_mode:
            raise OSError(errno.ENODEV, "No such device")
        return load(path, **options)

    monkeypatch.setattr(np, "load", load_without_maps)
    other = bank.open_bank(tmp_path / "bank")
    assert "cannot map files (No such device)" in caplog.text and not isinstance(
        other.logits, np.memmap
    )
    np.testing.assert_array_equal(other.rows(index), built.rows(index))


def test_a_disk_that_fills_while_a_bank_is_opened_again_costs_no_row(
    tmp_path, tiny_data, teachers, monkeypatch
):
    build(tmp_path, teachers, tiny_data)
    info = describe(teachers[0], tiny_data, teachers[1])
    assert bank_files.count_good(tmp_path, info) == 96
    for name in ("write_json", "write_json_lines"):
        with monkeypatch.context() as patch:

            def fail(path, _):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(bank_files.files, name, fail)
            with pytest.raises(ekg.EkgError, match="cannot be written"):
                bank_files.BankWriter(tmp_path, info, 96).open()
        assert bank_files.count_good(tmp_path, info) == 96


def test_a_block_that_cannot_be_written_ends_the_bank_after_its_last_whole_block(
    tmp_path, monkeypatch
):
    info = {"rows": 40, "outputs": [3], "dtype": "float32", "teachers": [0, 1]}
    parts, original, written = (
        np.split(np.arange(240, dtype=np.float32).reshape(40, 2, 3), 4),
        bank_files.files.sync,
        [],
    )

    def sync(file):
        if str(file.name).endswith(bank_files.ARRAY_FILE):
            written.append(file)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        original(file)

    monkeypatch.setattr(bank_files.files, "sync", sync)
    monkeypatch.setattr(bank_files, "BLOCK_ROWS", 10)
    writer = bank_files.BankWriter(tmp_path, info, 0)
    writer.open()
    with pytest.raises(
        ekg.EkgError, match="logits.npy: cannot be written \\(No space left on device\\)"
    ):
        for part in parts:
            writer.write(part)
    writer.close()
    assert len(written) == 2 and bank_files.count_good(tmp_path, info) == 10


def test_close_reports_a_last_block_that_cannot_be_written(tmp_path, monkeypatch):
    info = {"rows": 40, "outputs": [3], "dtype": "float32", "teachers": [0, 1]}
    writer = bank_files.BankWriter(tmp_path, info, 0)
    writer.open()
    writer.write(np.zeros((40, 2, 3), np.float32))

    def sync(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(bank_files.files, "sync", sync)
    with pytest.raises(ekg.EkgError, match="logits.npy: cannot be written"):
        writer.close()
    assert bank_files.count_good(tmp_path, info) == 0
