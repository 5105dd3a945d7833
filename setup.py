"""The build step beside pyproject.toml's facts; see longshore's api/data for what it writes."""

from setuptools import setup

setup()
