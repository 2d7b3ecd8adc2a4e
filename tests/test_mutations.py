"""A short run of tests.mutations: damaged files of every kind end in a typed error, or in good data."""

import numpy as np

from tests import mutations

HAS_CHECKSUM = {"parameters"}  # every change is noticed
NEVER_STOPS = {"curves", "phases", "knowledge"}  # what only tells what was, or is computed again


def test_damaged_files_of_every_kind_end_in_typed_errors_or_good_data(tmp_path):
    kinds = mutations.write_all(tmp_path)
    assert len(kinds) == 19
    results = {kind: mutations.damage(path, read, 40, np.random.default_rng(1)) for kind, (path, read) in kinds.items()}
    for kind, result in results.items():
        assert result["read"] + result["refused"] == 40
        assert kind not in HAS_CHECKSUM or result["refused"] == 40
        assert result["refused"] == 0 if kind in NEVER_STOPS or "'s " in kind else result["refused"] > 10, (kind, result)
