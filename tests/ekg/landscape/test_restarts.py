"""Lanczos' method with a basis that does not fit its budget."""

import numpy as np
import pytest

from ekg.landscape import lanczos

SIZE = 400


def make_matrix(seed=1):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    values = np.concatenate([[-3.0, -2.5], np.linspace(-1, 5, SIZE - 4), [18.0, 20.0]])
    return basis @ np.diag(values) @ basis.T


@pytest.mark.parametrize("vectors", [16, 25, SIZE])
def test_both_ends_are_found_within_any_memory(monkeypatch, vectors):
    monkeypatch.setattr(lanczos, "BASIS_BUDGET", vectors * 8 * SIZE)
    matrix, start = make_matrix(), np.random.default_rng(0).normal(size=SIZE)
    ends = lanczos.spectrum_ends(
        lambda vector: matrix @ vector, start, SIZE, tolerance=1e-6, max_products=300
    )
    assert ends.converged and ends.products < 300
    assert ends.largest == pytest.approx(20, abs=1e-6) and ends.smallest == pytest.approx(
        -3, abs=1e-6
    )
    assert lanczos.basis_bytes(SIZE, 300) == 8 * SIZE * min(vectors, 300)


def test_a_residual_is_computed_from_its_eigenvector(monkeypatch):
    """‖Av − λv‖ bounds the distance of λ from an eigenvalue, also after restarts."""
    monkeypatch.setattr(lanczos, "BASIS_BUDGET", 0)
    matrix, start = make_matrix(2), np.random.default_rng(3).normal(size=SIZE)
    values = np.linalg.eigvalsh(matrix)
    for max_products in (6, 12, 24):
        ends = lanczos.spectrum_ends(
            lambda vector: matrix @ vector, start, SIZE, tolerance=0.0, max_products=max_products
        )
        assert not ends.converged and ends.products == max_products
        assert np.abs(values - ends.largest).min() <= ends.residual_largest * (1 + 1e-6) + 1e-9
        assert np.abs(values - ends.smallest).min() <= ends.residual_smallest * (1 + 1e-6) + 1e-9
