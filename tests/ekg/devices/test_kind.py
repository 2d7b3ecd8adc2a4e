"""Each decision about the kind of device, with GPUs and without; a test says which there are."""

import pytest
import tensorflow as tf

from ekg.devices import kind
from ekg.errors import EkgError
from ekg.graph import narrow_norms
from ekg.run.check import check_precision
from ekg.run.settings import RunSettings

AMPERE = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
VOLTA = {"device_name": "NVIDIA V100", "compute_capability": (7, 0)}


class Gpu:
    name, device_type = "/physical_device:GPU:0", "GPU"

    def __init__(self, details):
        self.details = details


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that gives this machine GPUs of these details, and a processor of these flags."""

    def make(*details, flags=""):
        monkeypatch.setattr(kind, "gpus", lambda: [Gpu(each) for each in details])
        monkeypatch.setattr(kind, "details_of", lambda gpu: gpu.details)
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        monkeypatch.setattr(kind, "PROCESSORS", tmp_path / "cpuinfo")

    return make


def test_steps_are_compiled_on_a_gpu_unless_set_otherwise(machine):
    machine()
    assert [kind.use_xla(choice) for choice in kind.COMPILE_CHOICES] == [False, True, False]
    machine(AMPERE)
    assert [kind.use_xla(choice) for choice in kind.COMPILE_CHOICES] == [True, True, False]


def test_the_first_gpu_is_used_or_else_the_cpu(machine):
    machine()
    assert (kind.default_device(), kind.gpu_names(), kind.gpu_memory_names()) == ("CPU:0", [], [])
    machine(AMPERE, VOLTA)
    assert kind.default_device() == "GPU:0" and kind.gpu_memory_names() == ["GPU:0", "GPU:1"]
    assert kind.gpu_names() == ["NVIDIA A100", "NVIDIA V100"]


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        ((), "avx512_bf16", True),
        ((), "avx512f", False),
        ((AMPERE,), "", True),
        ((AMPERE, VOLTA), "avx512_bf16", False),
        (({},), "avx512_bf16", False),
    ],
)  # a GPU that tells nothing has none
def test_bfloat16_needs_instructions_of_every_device(machine, gpus, flags, expected):
    machine(*gpus, flags=flags)
    assert kind.has_bfloat16() == expected


def test_float16_needs_a_gpu(machine):
    machine()
    with pytest.raises(EkgError, match="`precision` float16: needs a GPU"):
        check_precision(RunSettings(precision="float16"))
    machine(VOLTA)
    check_precision(RunSettings(precision="float16", search_precision="float16"))


def test_norms_tile_positions_on_a_cpu_only(machine):
    x = tf.zeros((6, 8, 8, 13))
    machine()
    assert narrow_norms.tiles(x) == 16
    machine(AMPERE)
    assert narrow_norms.tiles(x) == 1


class Machine:
    """Stands for the calls of tf.config by which GPUs are chosen."""

    def __init__(self, monkeypatch, count, is_used=False):
        self.there, self.visible, self.growing, self.is_used = (
            [f"gpu{i}" for i in range(count)],
            None,
            [],
            is_used,
        )
        self.visible = list(self.there)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: self.there)
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: self.visible)
        monkeypatch.setattr(
            tf.config, "set_visible_devices", lambda chosen, _: setattr(self, "visible", chosen)
        )
        monkeypatch.setattr(
            tf.config.experimental, "get_memory_growth", lambda gpu: gpu in self.growing
        )
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self.grow)

    def grow(self, gpu, _):
        if self.is_used:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growing.append(gpu)


@pytest.mark.parametrize(
    ("count", "chosen", "names", "visible"),
    [
        (0, None, [], []),
        (1, None, ["GPU:0"], ["gpu0"]),
        (3, None, ["GPU:0"], ["gpu0"]),
        (3, (2, 1), ["GPU:0", "GPU:1"], ["gpu2", "gpu1"]),
    ],
)
def test_only_the_chosen_gpus_are_visible_and_their_memory_grows_as_needed(
    monkeypatch, count, chosen, names, visible
):
    """Of a machine with one GPU, too, where nothing need be hidden."""
    there = Machine(monkeypatch, count)
    assert kind.choose_gpus(chosen) == names
    assert there.visible == visible and there.growing == visible
    assert (
        kind.choose_gpus(chosen) == names and there.growing == visible
    )  # again, in the same process


def test_gpus_that_this_process_has_used_are_named(monkeypatch):
    Machine(monkeypatch, 1, is_used=True)
    with pytest.raises(
        EkgError, match="`gpu_id`: this process has already used its GPUs; start a new one"
    ):
        kind.choose_gpus()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((3,), "`gpu_id` 3: this machine has GPUs 0 to 1"),
        ((-1,), "`gpu_id` -1: this machine has GPUs 0 to 1"),
        ((1, 1), "`gpu_id` 1 1: name every GPU once"),
    ],
)
def test_gpus_that_are_not_there_are_named(monkeypatch, chosen, message):
    Machine(monkeypatch, 2)
    with pytest.raises(EkgError, match=message):
        kind.choose_gpus(chosen)
