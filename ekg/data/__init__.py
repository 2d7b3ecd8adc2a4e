"""Data: what a data set must be, the forms that users bring it in, views and batches."""

from ekg.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split"]
