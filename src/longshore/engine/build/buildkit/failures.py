"""Steps that failed, as a client may enter them (buildx debug --on=error): what the command was, and its files before and after.

Source: BuildKit solver/errdefs (Solve), frontend/gateway/gateway.go (wrapSolveError).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict

from longshore.engine.build.buildkit.schemas import pb

_URL = "github.com/moby/buildkit/errdefs.Solve+json"


@dataclass(slots=True)
class FailedStep:
    """A command that failed. before, after: chains of layers of its root; the rest as the step had it."""

    before: str
    after: str
    words: Sequence[str]
    env: Sequence[str]
    cwd: str
    user: str
    network: str

    def detail(self, hold: Callable[[str], str]) -> tuple[str, bytes]:
        """The error's detail (type URL, JSON). hold: makes a result of a chain that the client may ask for; its id."""
        meta = pb.Meta(args=self.words, env=self.env, cwd=self.cwd, user=self.user)
        network = {"host": 1, "none": 2}.get(self.network, 0)
        operation = pb.Op(exec=pb.ExecOp(meta=meta, mounts=[pb.Mount(dest="/")], network=network))
        shown: dict[str, Any] = MessageToDict(operation)
        found = {"inputIDs": [hold(self.before)], "mountIDs": [hold(self.after)], "op": shown}
        return _URL, orjson.dumps(found)
