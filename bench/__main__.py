"""Run every bench (or those named), each in a process, network and mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_BENCHES = {"__init__", "__main__", "peers", "report"}


def main(names: list[str]) -> int:
    """The number of benches that failed."""
    found = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NOT_BENCHES)
    unknown = set(names) - set(found)
    if unknown:
        print(f"no such bench: {', '.join(sorted(unknown))}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or found:
        print(f"\n# {name}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}"]
        if os.geteuid() == 0:
            inside = 'ip link set lo up && exec "$@"'
            command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", *command]
        failed += subprocess.run(command, cwd=FOLDER.parent, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main([a for a in sys.argv[1:] if not a.startswith("-")]))
