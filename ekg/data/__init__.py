"""Data sets: splits and batches, the forms in which users supply data, and augmented views."""

from ekg.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split"]
