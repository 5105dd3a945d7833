"""Run every bench (or those named), each in a process, network and mount namespace of its own.

    python -m bench [NAME ...] [--page docs/bench.md]

--page: write the figures of this run as a page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NOT_BENCHES = {"__init__", "__main__", "peers", "report"}


def run(name: str, *, collect: bool) -> tuple[int, list[dict[str, Any]]]:
    """One bench: its exit code and, where they are collected, its figures."""
    command = [sys.executable, "-m", f"bench.{name}"]
    if os.geteuid() == 0:
        inside = 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", *command]
    env = {**os.environ, **({"BENCH_JSON": "1"} if collect else {})}
    done = subprocess.run(command, cwd=FOLDER.parent, check=False, env=env, stdout=subprocess.PIPE if collect else None)
    rows = []
    for line in (done.stdout or b"").splitlines():
        print("  " + line.decode(), flush=True)
        if line.startswith(b"{"):
            rows.append(json.loads(line))
    return done.returncode, rows


def page(figures: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as a page."""
    kernel, cores = os.uname().release, os.cpu_count()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        "# Figures",
        "",
        f"Written by `python -m bench --page docs/bench.md` on {day} ({cores} cores, Linux {kernel}, Python "
        f"{sys.version.split()[0]}). The machine is shared and noisy: only ratios within one run say anything. A peer that",
        "was not installed has no figure. The claim and the method stand at the top of each `bench/NAME.py`.",
    ]
    for name, rows in figures.items():
        lines += ["", f"## {name}", "", "| what | Longshore | unit | peer, same run | theirs | ratio | target |"]
        lines.append("|---|---|---|---|---|---|---|")
        for row in rows:
            theirs, ratio = row.get("theirs"), row.get("ratio")
            cells = (
                row["claim"].strip(),
                f"{row['longshore']:,}",
                row["unit"],
                row.get("peer", ""),
                f"{theirs:,}" if theirs is not None else "",
                ratio if ratio is not None else "",
                row.get("target", ""),
            )
            lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The number of benches that failed."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--page", type=Path, default=None)
    arguments = parser.parse_args()
    found = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NOT_BENCHES)
    unknown = set(arguments.names) - set(found)
    if unknown:
        print(f"no such bench: {', '.join(sorted(unknown))}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    failed = 0
    figures: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.names or found:
        print(f"\n# {name}", flush=True)
        code, figures[name] = run(name, collect=arguments.page is not None)
        failed += code != 0
    if arguments.page is not None:
        arguments.page.write_text(page(figures))
    return failed


if __name__ == "__main__":
    sys.exit(main())
