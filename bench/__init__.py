"""One file a claim, each against a named peer in the same run, as a ratio. `python -m bench [NAME ...]` runs them."""

import os
import sys

# An installed package has its modules compiled. Where the environment forbids keeping them, every start would compile them
# again: half of an engine's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
