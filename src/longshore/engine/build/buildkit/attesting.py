"""What is attested about a build's images: how they were made, and what is in them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit import attributes, provenance
from longshore.engine.images.listing import shown_platform
from longshore.engine.images.manifests import Entry
from longshore.engine.images.model import Image, time_text

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.control import Job
    from longshore.engine.build.buildkit.frontend import Outcome
    from longshore.engine.images.store import ImageStore


def attested(store: ImageStore, job: Job, given: Mapping[str, str], outcome: Outcome, names: list[str]) -> list[Entry]:
    """The images with what is attested about each. given: the client's attributes; names: those of the outputs.

    Raises InvalidParameter.
    """
    asked = dict(given)
    if job.frontend is not None:
        asked = {**job.frontend.attributes, **asked}
    chosen = attributes.attestations_of(asked).get("provenance")
    entries: list[Entry] = []
    for platform, image in outcome.images:
        shown = platform or shown_platform(image)
        entry = Entry(shown, image)
        if job.frontend is not None:
            for found in job.frontend.scanned.get(shown, ()):
                entry.attest(found.predicate, found.statement, found.file)
        if chosen is not None and job.frontend is not None:
            facts = _facts(store, job, asked, shown, names)
            only = chosen.get("inline-only") == "true"
            entry.attest(*provenance.statement(facts, chosen), "" if only else "provenance.json")
        entries.append(entry)
    return entries


def _facts(store: ImageStore, job: Job, asked: Mapping[str, str], platform: str, names: list[str]) -> provenance.Facts:
    frontend = job.frontend
    assert frontend is not None
    steps, last = frontend.steps.get(platform, (None, None))
    described: tuple[dict[str, Any], ...] = ({}, {}, {})
    if steps is not None:
        described = steps.described(store, last)
    return provenance.Facts(
        ref=job.ref,
        frontend="dockerfile.v0",
        attributes=asked,
        sources={name: (found, _digest(store, found)) for name, found in job.sources.items()},
        file=frontend.contexts.file,
        context=asked.get("context", ""),
        commit=frontend.contexts.commit,
        platform=platform,
        builder_platform=attributes.host_platform(),
        definition=described[0],
        locations=described[1],
        layers=described[2],
        layouts=frontend.contexts.layouts,
        secrets=steps.secrets if steps is not None else {},
        agents=steps.agents if steps is not None else {},
        started=time_text(job.started),
        ended=time_text(time.time_ns()),
        data=frontend.contexts.data,
        names=names,
    )


def _digest(store: ImageStore, image: Image) -> str:
    """The manifest digest by which an image is known, else its own id."""
    found = [reference.digest for reference in store.names(image.id) if reference.digest]
    return found[0] if found else image.id
