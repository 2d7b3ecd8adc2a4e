"""Builds the wheel in a temporary folder, so that files of an earlier build/ cannot get into it.

Everything else about the package is in pyproject.toml.
"""

import tempfile

import setuptools

with tempfile.TemporaryDirectory() as folder:
    setuptools.setup(options={"build": {"build_base": folder}})
