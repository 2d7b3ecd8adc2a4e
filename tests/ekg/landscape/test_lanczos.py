import numpy as np
import pytest

from ekg.landscape.lanczos import spectrum_ends

SIZE = 60


@pytest.fixture(scope="module")
def matrix():
    """A symmetric matrix with the eigenvalues -3, 58 from -0.5 to 5, and 20."""
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))
    return (
        basis @ np.diag(np.concatenate([[-3.0], np.linspace(-0.5, 5, SIZE - 2), [20.0]])) @ basis.T
    )


def ends_of(matrix, **options):
    start = np.random.default_rng(0).standard_normal(SIZE)
    return spectrum_ends(lambda vector: matrix @ vector, start, SIZE, **options)


def test_both_ends_of_a_spectrum_are_computed_and_every_product_is_reported(matrix):
    told = []
    ends = ends_of(matrix, tolerance=1e-6, on_product=lambda *values: told.append(values))
    assert (
        ends.converged
        and ends.largest == pytest.approx(20, abs=1e-6)
        and ends.smallest == pytest.approx(-3, abs=1e-6)
    )
    assert ends.products == len(told) < SIZE
    assert told[-1] == (
        ends.products,
        pytest.approx(max(ends.residual_largest / 20, ends.residual_smallest / 3)),
    )


def test_too_few_products_are_reported(matrix):
    ends = ends_of(matrix, tolerance=1e-6, max_products=5)
    assert not ends.converged and ends.products == 5 and ends.residual_smallest > 1e-3


def test_residuals_match_their_eigenvectors(matrix):
    """An eigenvalue is as near to one of the matrix as its residual says."""
    ends, values = ends_of(matrix, tolerance=1e-6, max_products=8), np.linalg.eigvalsh(matrix)
    for value, residual in (
        (ends.largest, ends.residual_largest),
        (ends.smallest, ends.residual_smallest),
    ):
        assert np.abs(values - value).min() <= residual


def test_a_complete_krylov_space_ends_the_iteration():
    """Of two different eigenvalues the second product leaves nothing over."""
    ends = ends_of(np.diag([2.0] * 50 + [-1.0] * 10), tolerance=1e-12)
    assert ends.converged and ends.products == 2
    assert (ends.largest, ends.smallest) == (pytest.approx(2), pytest.approx(-1))
