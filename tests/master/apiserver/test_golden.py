"""Recorded exchanges of upstream's API server, replayed: a floor of exact answers in each theme."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Percent of exact answers; raised as the server gets better. On a busy machine ages in tables and the order of
# managedFields written in different seconds differ from what was recorded: the floors leave room for that.
FLOORS = {
    "metadata": 95,
    "lists": 94,
    "watches": 95,
    "patches": 95,
    "misc": 95,
    "defaults": 95,
    "validation": 98,
    "auth": 95,
    "admission": 95,
    "crds": 96,
}


@pytest.mark.parametrize("theme", sorted(FLOORS))
def test_exact_answers(golden: Path, tmp_path: Path, start_server: Any, theme: str) -> None:
    running = start_server()
    verdicts = tmp_path / "verdicts.json"
    command = [sys.executable, str(golden / "replay_kubernetes.py"), "--server", running.url, "--ca", str(running.ca),
               "--cert", str(running.certificate), "--key", str(running.key), "--json", str(verdicts),
               str(golden / "kubernetes" / "exchanges" / f"{theme}.jsonl")]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=280)
    found = [json.loads(line) for line in verdicts.read_text().splitlines()]
    exact = sum(v["verdict"] == "exact" for v in found)
    wrong = [f"{v['id']}: {v['why'][:200]}" for v in found if v["verdict"] != "exact"]
    share = 100 * exact / max(len(found), 1)
    assert share >= FLOORS[theme], f"{theme}: {share:.1f} % exact\n" + "\n".join(wrong[:40])
