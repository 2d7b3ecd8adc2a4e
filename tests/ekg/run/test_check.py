import pytest

from ekg.errors import EkgError
from ekg.run.check import check_batch


def test_a_batch_that_does_not_divide_is_named():
    message = r"`batch_size` 24 must be a multiple of 10 = 2 devices x 5 micro-batches"
    with pytest.raises(EkgError, match=message):
        check_batch("batch_size", 24, {"devices": 2, "micro-batches": 5})
    check_batch("batch_size", 30, {"devices": 2, "micro-batches": 5})
