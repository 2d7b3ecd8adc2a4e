"""Both ends of a symmetric operator's spectrum by Lanczos' method, from products alone.

The basis is kept within a memory budget: when it is full, the method restarts from the best
approximations of both ends (thick restarts, Wu and Simon 2000, "Thick-Restart Lanczos Method for
Large Symmetric Eigenvalue Problems").
"""

import dataclasses

import numpy as np

from ekg.process import stopping

# of a residual, relative to its eigenvalue; the error of the eigenvalue is of the order of its
# square
TOLERANCE = 0.05
MAX_PRODUCTS = 100
BASIS_BUDGET = 4 * 2**30  # bytes of the basis, float64; it holds 16 vectors at least
RESTART_VECTORS = 8  # approximate eigenvectors that a restart keeps, half of them of each end
# what is left of a product, relative to the largest eigenvalue, where the Krylov space is whole
BREAKDOWN = 1e-7


@dataclasses.dataclass(frozen=True)
class Ends:
    """Both ends of a spectrum and their accuracy.

    Attributes:
        largest: the algebraically largest eigenvalue λ_max.
        smallest: the smallest eigenvalue λ_min.
        residual_largest: ‖Hv − λv‖ of the unit eigenvector v of the largest.
        residual_smallest: the same of the smallest.
        products: number of products with vectors.
        converged: whether both residuals are within the tolerance.
    """

    largest: float
    smallest: float
    residual_largest: float
    residual_smallest: float
    products: int
    converged: bool


def spectrum_ends(
    multiply, start, dimension, *, tolerance=TOLERANCE, max_products=MAX_PRODUCTS, on_product=None
):
    """Returns the Ends of the spectrum of a symmetric operator, with full reorthogonalisation.

    Args:
        multiply: function from a vector, float64 [n], to its product.
        start: vector to start with, float64 [n].
        dimension: dimension of the space of the start vector and all products, at most n.
        tolerance: both residuals must be within this share of their eigenvalues.
        max_products: products after which it ends, converged or not; the result records which.
        on_product: function (products made, larger residual of both ends relative to its
            eigenvalue), or None.
    """
    limit = max_basis(len(start))
    basis = np.empty((min(limit, max_products, dimension), len(start)))  # row by row, [vectors, n]
    matrix = np.zeros((len(basis), len(basis)))  # of the operator, projected onto the basis
    basis[0], size = start / np.linalg.norm(start), 1
    for products in range(1, max_products + 1):
        stopping.check()
        rest = np.asarray(multiply(basis[size - 1]), np.float64)
        if not np.isfinite(rest).all():
            raise FloatingPointError(
                "a product with the Hessian is not finite; are these the weights of a trained "
                "network?"
            )
        for _ in range(2):  # once is not enough in floating point
            share = basis[:size] @ rest
            rest = rest - share @ basis[:size]
            matrix[:size, size - 1] += share
        matrix[size - 1, :size] = matrix[:size, size - 1]
        length = float(np.linalg.norm(rest))
        values, vectors = np.linalg.eigh(matrix[:size, :size])
        residuals = np.abs(length * vectors[-1, [0, -1]])
        relative = residuals / np.maximum(np.abs(values[[0, -1]]), np.finfo(np.float32).tiny)
        if on_product is not None:
            on_product(products, float(relative.max()))
        is_whole = size == dimension or length <= BREAKDOWN * np.abs(values).max()
        has_converged = bool((relative <= tolerance).all() or is_whole)
        if has_converged or products == max_products:
            break
        if size == len(basis):
            size = _restart(basis, matrix, values, vectors)
        basis[size] = rest / length
        size += 1
    return Ends(
        float(values[-1]),
        float(values[0]),
        float(residuals[1]),
        float(residuals[0]),
        products,
        has_converged,
    )


def max_basis(length):
    """Returns the number of vectors of this length that the basis may hold."""
    return max(BASIS_BUDGET // (8 * length), 2 * RESTART_VECTORS)


def basis_bytes(length, max_products=MAX_PRODUCTS):
    """Returns the most bytes that a basis of vectors of this length takes."""
    return 8 * length * min(max_basis(length), max_products)


def _restart(basis, matrix, values, vectors):
    """Replaces the basis by the approximate eigenvectors of both ends; returns their number.

    In the basis of these vectors the operator's projection is diagonal; the product of the next
    vector gives its coupling to them.
    """
    half = RESTART_VECTORS // 2
    chosen = [*range(half), *range(len(values) - half, len(values))]
    basis[: len(chosen)] = vectors[:, chosen].T @ basis[: len(values)]
    matrix[:] = 0
    np.fill_diagonal(matrix[: len(chosen), : len(chosen)], values[chosen])
    return len(chosen)
