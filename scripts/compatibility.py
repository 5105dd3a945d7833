"""Writes docs/compatibility.md: what answers, read from the code itself. `--check` says whether the page is current."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
NOTES = PAGE.with_name("compatibility-notes.md")


def kubernetes() -> Iterator[str]:
    """Every served resource."""
    from longshore.api.kinds import KINDS

    yield f"## Kubernetes API ({len(KINDS)} resources, surface of v1.36)\n"
    yield "| group | resource | versions | verbs | subresources |\n|---|---|---|---|---|"
    for (group, plural), resource in sorted(KINDS.items()):
        verbs = ", ".join(resource.verbs)
        yield f"| {group or 'core'} | {plural} | {', '.join(resource.versions)} | {verbs} | {', '.join(sorted(resource.subresources))} |"


def admission() -> Iterator[str]:
    """The admission chain."""
    from longshore.master.apiserver.admission.chain import OFF_BY_DEFAULT, PluginConfiguration, available

    every = available(PluginConfiguration(None), SimpleNamespace())  # type: ignore[arg-type]
    yield "\n## Admission plugins, in their order\n"
    yield ", ".join(name + (" (off by default)" if name in OFF_BY_DEFAULT else "") for name in every)


def manager() -> Iterator[str]:
    """Controllers and scheduler plugins."""
    from longshore.master.controllers.registry import CONTROLLERS
    from longshore.master.scheduler.plugins.registry import DEFAULT

    yield f"\n## Controllers ({len(CONTROLLERS)})\n"
    yield ", ".join(c.name for c in CONTROLLERS)
    yield "\n## Scheduler plugins, in their order\n"
    yield ", ".join(cls.name + (f" (weight {weight})" if weight else "") for cls, weight in DEFAULT)


def docker() -> Iterator[str]:
    """The Docker Engine API's routes."""
    from longshore.engine.dockerapi.server import make_router

    routes = [route for found in make_router()._routes.values() for route in found]
    yield f"\n## Docker Engine API ({len(routes)} operations)\n"
    yield "| method | path |\n|---|---|"
    for method, expression, _ in sorted(routes, key=lambda r: (r[1].pattern, r[0])):
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", expression.pattern).strip("^$")
        yield f"| {method} | `{path}` |"


def cri() -> Iterator[str]:
    """The CRI methods."""
    from longshore.engine.cri.images import Images
    from longshore.engine.cri.service import RuntimeService
    from longshore.wire.cri import cri as table

    yield "\n## CRI v1\n"
    for service, face in ((table.RuntimeService, RuntimeService), (table.ImageService, Images)):
        names = sorted(service.methods)
        there = [n for n in names if hasattr(face, re.sub(r"(?<!^)(?=[A-Z])", "_", n).lower())]
        missing = [n for n in names if n not in there]
        yield f"- {face.__name__}: {', '.join(there)}" + (f"; Unimplemented: {', '.join(missing)}" if missing else "")


def page() -> str:
    """The whole page."""
    head = (
        "# Compatibility\n\nWritten by scripts/compatibility.py from the code; the notes at the end are kept by hand.\n"
    )
    lines = [head, *kubernetes(), *admission(), *manager(), *docker(), *cri(), "", NOTES.read_text()]
    return "\n".join(lines)


if __name__ == "__main__":
    wanted = page()
    if "--check" in sys.argv:
        if PAGE.read_text() != wanted:
            sys.exit("docs/compatibility.md is not current: make docs")
    else:
        PAGE.write_text(wanted)
