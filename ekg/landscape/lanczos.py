"""Both ends of a symmetric operator's spectrum by Lanczos' method; the operator is never formed."""

import dataclasses

import numpy as np

from ekg import stopping

TOLERANCE = 0.05  # of a residual, relative to its eigenvalue; the error of the eigenvalue is of the order of its square
MAX_PRODUCTS = 100
BREAKDOWN = 1e-7  # what is left of a product, relative to the largest eigenvalue, where the Krylov space is whole


@dataclasses.dataclass(frozen=True)
class Ends:
    """Both ends of a spectrum and how well they are known.

    Attributes:
        largest: the algebraically largest eigenvalue λ_max.
        smallest: the smallest eigenvalue λ_min.
        residual_largest: ‖Hv − λv‖ of the unit vector v of the largest.
        residual_smallest: of the smallest.
        products: products with vectors that were made.
        converged: whether both residuals are within the tolerance.
    """
    largest: float
    smallest: float
    residual_largest: float
    residual_smallest: float
    products: int
    converged: bool


def spectrum_ends(multiply, start, dimension, *, tolerance=TOLERANCE, max_products=MAX_PRODUCTS, on_product=None):
    """Returns the Ends of the spectrum of a symmetric operator, with full reorthogonalisation.

    Args:
        multiply: function from a vector, float64 [n], to its product.
        start: vector to start with, float64 [n].
        dimension: of the space that start and all products lie in, at most n.
        tolerance: both residuals must be within this share of their eigenvalues.
        max_products: where they are not by then, the result says so.
        on_product: function (products made, larger residual of both ends relative to its eigenvalue), or None.
    """
    basis, diagonal, side = [start / np.linalg.norm(start)], [], []
    while True:
        stopping.check()
        product = multiply(basis[-1])
        diagonal.append(float(basis[-1] @ product))
        for _ in range(2):  # once is not enough in floating point
            for vector in basis:
                product = product - (vector @ product) * vector
        side.append(float(np.linalg.norm(product)))
        matrix = np.diag(diagonal) + np.diag(side[:-1], 1) + np.diag(side[:-1], -1)
        values, vectors = np.linalg.eigh(matrix)
        residuals = np.abs(side[-1] * vectors[-1, [0, -1]])
        relative = residuals / np.maximum(np.abs(values[[0, -1]]), np.finfo(np.float32).tiny)
        if on_product is not None:
            on_product(len(diagonal), float(relative.max()))
        is_whole = len(diagonal) == dimension or side[-1] <= BREAKDOWN * np.abs(values).max()
        has_converged = bool((relative <= tolerance).all() or is_whole)
        if has_converged or len(diagonal) == max_products:
            return Ends(float(values[-1]), float(values[0]), float(residuals[1]), float(residuals[0]), len(diagonal),
                        has_converged)
        basis.append(product / side[-1])
