"""A short run of tests.programs.mutations: damaged files of every kind end in a typed error, or in
good data.
"""

import numpy as np

from tests.programs import mutations

PROBED = {".h5", ".weights.h5"}  # another process reads each file first, so few are tried
HAS_CHECKSUM = {"parameters"}  # every change is noticed
NEVER_STOPS = {
    "curves",
    "phases",
    "knowledge",
    "environments",
}  # what only tells what was, or is computed again


def test_damaged_files_of_every_kind_end_in_typed_errors_or_good_data(tmp_path):
    kinds = mutations.write_all(tmp_path)
    assert len(kinds) in (23, 24)  # with PyTorch or without
    for kind, (path, read) in kinds.items():
        count = 6 if kind in PROBED else 40
        result = mutations.damage(path, read, count, np.random.default_rng(1))
        assert result["read"] + result["refused"] == count
        if kind in PROBED:
            continue
        assert kind not in HAS_CHECKSUM or result["refused"] == 40
        assert (
            result["refused"] == 0
            if kind in NEVER_STOPS or "'s " in kind
            else result["refused"] > 10
        ), (kind, result)


def test_wrong_content_with_a_valid_checksum_ends_in_typed_errors_or_good_data(tmp_path):
    kinds = {
        kind: entry
        for kind, entry in mutations.write_all(tmp_path).items()
        if entry[0].suffix in (".json", ".jsonl")
    }
    assert len(kinds) == 10
    for kind, (path, read) in kinds.items():
        for way, count in (("content", 60), ("nesting", 3)):
            result = mutations.damage(path, read, count, np.random.default_rng(2), way)
            assert result["read"] + result["refused"] == count
            if (kind, way) == ("bank's bank.json", "content"):
                continue  # it may tell of another run's bank
            is_free = (
                kind in NEVER_STOPS or "'s " in kind or (kind, way) == ("arguments", "content")
            )
            assert result["refused"] == 0 if is_free else result["refused"] > 0, (kind, way)


def test_strange_arrays_in_files_and_under_names_end_in_typed_errors_or_good_data(tmp_path):
    path, read = mutations.write_all(tmp_path)[".npz with text"]
    rng = np.random.default_rng(3)
    for result in (
        mutations.damage(path, read, 40, rng, "arrays"),
        mutations.damage_named(40, rng),
    ):
        assert result["read"] + result["refused"] == 40
        assert result["refused"] > 10 and result["read"] > 2
