"""The build step beside pyproject.toml's facts: writes src/longshore/api/data/openapi.* from kubernetes-validate.

It runs for wheels, plain installs and editable installs alike, and by hand: `python setup.py build_definitions`.
"""

import importlib.util
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build_py import build_py

DATA = Path(__file__).parent / "src" / "longshore" / "api" / "data"


def build_definitions() -> None:
    spec = importlib.util.spec_from_file_location("build_definitions", DATA / "build_definitions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(DATA)


class BuildDefinitions(Command):
    """Write the definitions file alone."""

    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        """Nothing to set."""

    def finalize_options(self) -> None:
        """Nothing to check."""

    def run(self) -> None:
        build_definitions()


class BuildPy(build_py):
    """build_py, after the definitions file is there (an editable install runs this too)."""

    def run(self) -> None:
        build_definitions()
        super().run()


setup(cmdclass={"build_py": BuildPy, "build_definitions": BuildDefinitions})
