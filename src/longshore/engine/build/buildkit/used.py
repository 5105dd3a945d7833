"""Which files of a context a build uses: only these are asked of the client.

Source: BuildKit frontend/dockerfile/dockerfile2llb (ctxPaths of a dispatch state).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from longshore.engine.build.instructions import Instruction

_REMOTE = re.compile(r"https?://|git://|git@|ssh://")


def sources(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """(context, path) of all that an instruction takes. context: the name after `from`, "" for the main one."""
    if instruction.command in ("copy", "add"):
        for word in instruction.words[:-1]:
            remote = instruction.command == "add" and _REMOTE.match(word)
            if not remote and not re.match(r"\d*<<", word):
                yield instruction.flags.get("from") or "", word
    for text in instruction.lists.get("mount", ()):
        if "type=" not in text or "type=bind" in text:
            origin = re.search(r"(?:^|,)from=([^,]+)", text)
            source = re.search(r"(?:^|,)(?:source|src)=([^,]+)", text)
            yield (origin[1] if origin else ""), (source[1] if source else ".")


def narrowed(paths: Iterable[str]) -> list[str] | None:
    """Paths as a client is to be asked for them: [] nothing, None everything."""
    clean: list[str] = []
    for word in paths:
        path = word.lstrip("/").removeprefix("./").rstrip("/")
        if path in ("", ".") or "$" in path or path.startswith("..") or "/./" in path or "**" in path:
            return None
        if path not in clean:
            clean.append(path)
    return clean
