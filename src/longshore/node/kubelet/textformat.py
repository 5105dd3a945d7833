"""Samples in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def line(name: str, labels: Mapping[str, str], value: float, when: int = 0) -> str:
    """One sample. when: milliseconds since 1970."""
    shown = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
    return (name + (f"{{{shown}}}" if shown else "")) + f" {value:.10g}" + (f" {when}" if when else "")
