"""A user's own images; the readers are in the library."""

from ekg.data.images import load as load
