"""`longshore apiserver`: reads kube-apiserver's own flag names."""

from __future__ import annotations

import gc
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the API server with upstream's flags; its exit code."""
    gc.disable()  # importing makes no garbage worth looking for; the command enables it once it serves
    from longshore.master.apiserver.command import main as serve

    return int(serve(list(argv)) or 0)
