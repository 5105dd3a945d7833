"""Request bodies to objects, with upstream's words for whatever is wrong with them.

JSON is parsed by orjson; a slower reader finds duplicate keys and the place of a syntax error only where there is one.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson
import yaml

from longshore.api.mismatches import json_kind
from longshore.api.schema import DecodeError
from longshore.api.validation.errors import quote

SCHEME = "pkg/api/legacyscheme/scheme.go:30"
_KEY = re.compile(rb'"\s*:')


class BodyError(Exception):
    """The body cannot be taken (400 BadRequest); str() is upstream's message."""


class Parsed(NamedTuple):
    """A parsed body and the duplicate keys that strict decoding complains about (whole sentences)."""

    value: Any
    duplicates: list[str]


def summarize(data: bytes) -> str:
    """The beginning of a body as it stands in messages."""
    if not data:
        return "<empty>"
    if data[:1] == b"{":
        return data.decode("utf-8", "replace") if len(data) <= 30 else data[:30].decode("utf-8", "replace") + " ..."
    return data.hex() if len(data) <= 30 else data[:30].hex() + " ..."


def parse_json(data: bytes, *, duplicates: bool) -> Parsed:
    """data as JSON; ValueError in the words of Go's JSON package. duplicates: look for keys that are there twice."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        problem = syntax_error(data)
        if problem:
            raise ValueError(problem) from None
        # What orjson will not have and Go will: a half of a surrogate pair, which Go replaces.
        value = json.loads(data.decode("utf-8", "replace"))
        value = _whole(value)
    found: list[str] = []
    if duplicates and not _written(value, data) and len(_KEY.findall(data)) != _count(value):
        found = _duplicates(data)
    return Parsed(value, found)


def _whole(value: Any) -> Any:
    """value with each half of a surrogate pair replaced, as Go's decoder does."""
    if isinstance(value, str):
        return value if value.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, dict):
        return {_whole(key): _whole(child) for key, child in value.items()}
    return [_whole(child) for child in value] if isinstance(value, list) else value


def _written(value: Any, data: bytes) -> bool:
    """Whether data is what an encoder makes of value, as most bodies are: then no key was there twice."""
    try:
        return orjson.dumps(value) == data.rstrip()
    except TypeError:  # too deep, or a number past 64 bits
        return False


def _count(value: Any) -> int:
    if value.__class__ is dict:
        total = len(value)
        for child in value.values():
            if child.__class__ is dict or child.__class__ is list:
                total += _count(child)
        return total
    if value.__class__ is list:
        return sum(_count(child) for child in value if child.__class__ is dict or child.__class__ is list)
    return 0


class _Pairs(list[tuple[str, Any]]):
    pass


def _duplicates(data: bytes) -> list[str]:
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, _Pairs):
            seen: set[str] = set()
            for key, child in value:
                here = f"{path}.{key}" if path else key
                if key in seen:
                    message = f'duplicate field "{here}"'
                    if message not in found:
                        found.append(message)
                seen.add(key)
                walk(child, here)
        elif isinstance(value, list):
            for index, child in enumerate(value):
                walk(child, f"{path}[{index}]")

    try:
        walk(json.loads(data, object_pairs_hook=_Pairs), "")
    except (ValueError, RecursionError):
        return []
    return found


def _as_met(data: bytes, duplicates: list[str], unknown: list[str]) -> list[str]:
    """Complaints about a built-in kind's fields, in the order in which a decoder meets them.

    What is below an unknown field is not looked at.
    """
    places: dict[str, int] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, _Pairs):
            for key, child in value:
                here = f"{path}.{key}" if path else key
                first = f'unknown field "{here}"'
                if first not in places:
                    places[first] = len(places)
                else:
                    places.setdefault(f'duplicate field "{here}"', len(places))
                walk(child, here)
        elif isinstance(value, list):
            for index, child in enumerate(value):
                walk(child, f"{path}[{index}]")

    walk(json.loads(data, object_pairs_hook=_Pairs), "")
    heads = tuple(text.removeprefix("unknown")[:-1] for text in unknown)
    kept = [d for d in duplicates if not any(_below(d.removeprefix("duplicate"), head) for head in heads)]
    return sorted(kept + unknown, key=lambda text: places.get(text, len(places)))


def _below(text: str, head: str) -> bool:
    return text.startswith(head) and text[len(head)] in '".['


_VALUE = "looking for beginning of value"


def syntax_error(data: bytes) -> str:
    """What Go's JSON scanner says about data; "" when it is well formed (unpaired surrogates are, to Go)."""
    text = data.decode("utf-8", "replace")
    end = len(text)
    at = 0
    stack: list[str] = []
    state = "value"

    def bad(char: str, where: str) -> str:
        shown = {"'": "'\\''", '"': "'\"'"}.get(char) or ("'" + quote(char)[1:-1] + "'")
        return f"invalid character {shown} {where}"

    def literal(word: str) -> str:
        nonlocal at
        for offset, char in enumerate(word):
            if at + offset >= end:
                return "unexpected end of JSON input"
            if text[at + offset] != char:
                return bad(text[at + offset], f"in literal {word} (expecting '{char}')")
        at += len(word)
        return ""

    def string() -> str:
        nonlocal at
        at += 1
        while at < end:
            char = text[at]
            if char == '"':
                at += 1
                return ""
            if char == "\\":
                at += 1
                if at >= end:
                    break
                if text[at] == "u":
                    for _ in range(4):
                        at += 1
                        if at >= end:
                            return "unexpected end of JSON input"
                        if text[at] not in "0123456789abcdefABCDEF":
                            return bad(text[at], "in \\u hexadecimal character escape")
                elif text[at] not in '"\\/bfnrt':
                    return bad(text[at], "in string escape code")
            elif ord(char) < 0x20:
                return bad(char, "in string literal")
            at += 1
        return "unexpected end of JSON input"

    number = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
    while True:
        while at < end and text[at] in " \t\r\n":
            at += 1
        if at >= end:
            return "" if state == "end" else "unexpected end of JSON input"
        char = text[at]
        problem = ""
        if state == "end":
            return bad(char, "after top-level value")
        if state in ("value", "first-item"):
            if state == "first-item" and char == "]":
                at += 1
                stack.pop()
                state = "after"
            elif char == "{":
                at += 1
                stack.append("{")
                state = "first-key"
                if len(stack) > 10000:
                    return "exceeded max depth"
                continue
            elif char == "[":
                at += 1
                stack.append("[")
                state = "first-item"
                if len(stack) > 10000:
                    return "exceeded max depth"
                continue
            elif char == '"':
                problem = string()
                state = "after"
            elif char in "tfn":
                problem = literal({"t": "true", "f": "false", "n": "null"}[char])
                state = "after"
            elif char == "-" or char.isdigit():
                match = number.match(text, at)
                if match is None:
                    return bad(text[at + 1], "in numeric literal") if at + 1 < end else "unexpected end of JSON input"
                at = match.end()
                if at < end and text[at] == ".":
                    return (
                        bad(text[at + 1], "after decimal point in numeric literal")
                        if at + 1 < end
                        else "unexpected end of JSON input"
                    )
                if at < end and text[at] in "eE":
                    return (
                        bad(text[at + 1], "in exponent of numeric literal")
                        if at + 1 < end
                        else "unexpected end of JSON input"
                    )
                state = "after"
            else:
                return bad(char, _VALUE)
            if problem:
                return problem
        elif state in ("key", "first-key"):
            if char == "}" and state == "first-key":
                at += 1
                stack.pop()
                state = "after"
            elif char == '"':
                problem = string()
                if problem:
                    return problem
                state = "colon"
                continue
            else:
                return bad(char, "looking for beginning of object key string")
        elif state == "colon":
            if char != ":":
                return bad(char, "after object key")
            at += 1
            state = "value"
            continue
        elif state == "after":
            if stack[-1] == "{":
                if char == ",":
                    at += 1
                    state = "key"
                    continue
                if char != "}":
                    return bad(char, "after object key:value pair")
            else:
                if char == ",":
                    at += 1
                    state = "value"
                    continue
                if char != "]":
                    return bad(char, "after array element")
            at += 1
            stack.pop()
        if not stack:
            state = "end"


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.1 as upstream reads it, without dates, noting duplicate keys."""

    duplicates: list[str]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        out: dict[str, Any] = {}
        self.flatten_mapping(node)
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, bool):
                key = "true" if key else "false"
            elif not isinstance(key, str):
                key = str(key)
            if key in out:
                self.duplicates.append(f'line {key_node.start_mark.line + 1}: key "{key}" already set in map')
            out[key] = self.construct_object(value_node, deep=True)
        return out

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a plain scalar, as go-yaml v2 has it: y and n are bools, 12:30 is a text, 1e3 a number."""
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)
        return _TAG + _plain_kind(value)


_TAG = "tag:yaml.org,2002:"
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), "null"),
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON", "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], "bool"),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF", ".nan", ".NaN", ".NAN"), "float"),
    "<<": "merge",
}  # fmt: skip
_INT = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


def _plain_kind(text: str) -> str:
    known = _WORDS.get(text)
    if known is not None:
        return known
    if text[0] not in "+-.0123456789":
        return "str"
    plain = text.replace("_", "") if text[-1] != "_" else text
    if _INT.fullmatch(plain):
        return "int"
    return "float" if _FLOAT.fullmatch(plain) else "str"


def _integer(loader: _Loader, node: Any) -> int | float:
    text = loader.construct_scalar(node).replace("_", "")
    digits = text.lstrip("+-").lower()
    base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2], 8 if len(digits) > 1 and digits[0] == "0" else 10)
    value = int(digits[2:] if digits[:2] in ("0x", "0b", "0o") else digits, base) * (-1 if text[0] == "-" else 1)
    return value if -(2**63) <= value < 2**64 else float(value)


def _float(loader: _Loader, node: Any) -> float:
    return float(loader.construct_scalar(node).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _mapping(loader: _Loader, node: Any) -> dict[str, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(_TAG + "timestamp", lambda loader, node: loader.construct_scalar(node))
_Loader.add_constructor(_TAG + "int", _integer)
_Loader.add_constructor(_TAG + "float", _float)
_Loader.add_constructor(_TAG + "bool", lambda loader, node: node.value.lower() in ("y", "yes", "true", "on"))


def parse_yaml(data: bytes) -> Parsed:
    """data as YAML; ValueError in upstream's words."""
    loader = _Loader(data)
    loader.duplicates = []
    try:
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        # As go-yaml counts: its parser's marks are taken as they are, its scanner's are raised by one.
        line = error.problem_mark.line if error.problem_mark else 0
        line = line + 1 if isinstance(error, yaml.scanner.ScannerError) or not line else line
        raise ValueError(f"yaml: line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"yaml: {error}") from None
    finally:
        loader.dispose()
    return Parsed(value, loader.duplicates)


def read(
    resource: Any, version: str, data: bytes, *, yaml_body: bool, validation: str
) -> tuple[dict[str, Any], list[str]]:
    """The object in a body.

    Args: resource (`kinds.Resource`-like) and version the request names; data; whether it is YAML; validation: Ignore,
    Warn or Strict. Result: the object (decoded, apiVersion and kind set, no defaults yet) and warnings.
    Raises BodyError (400).
    """
    kind = resource.kind
    try:
        parsed = parse_yaml(data) if yaml_body else parse_json(data, duplicates=validation != "Ignore")
    except ValueError as error:
        prefix = "" if yaml_body else "couldn't get version/kind; json parse error: "
        raise BodyError(
            f"the object provided is unrecognized (must be of type {kind}): {prefix}{error} ({summarize(data)})"
        ) from None
    value, strict = parsed
    if value is None:
        value = {}
    if not isinstance(value, dict):
        shown, into = json_kind(value), HEAD_TYPE
        raise BodyError(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: json: cannot unmarshal {shown} into Go value of type {into} ({summarize(data)})"
        )
    return admit(resource, version, value, list(strict), validation, data, yaml_body=yaml_body)


HEAD_TYPE = 'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'


def admit(
    resource: Any,
    version: str,
    value: dict[str, Any],
    strict: list[str],
    validation: str,
    data: bytes = b"",
    *,
    yaml_body: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """The same for a body that is parsed already; strict: complaints found so far."""
    kind = resource.kind
    want = resource.api_version(version)
    given_version, given_kind = value.get("apiVersion"), value.get("kind")
    for name, given in (("apiVersion", given_version), ("kind", given_kind)):
        if given is not None and not isinstance(given, str):
            shown = json_kind(given)
            raise BodyError(
                f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: json: cannot unmarshal {shown} into Go struct field .{name} of type string ({summarize(data)})"
            )
    given_version, given_kind = given_version or want, given_kind or kind
    short = given_version.rpartition("/")[2]
    if given_version.count("/") > 1:
        raise BodyError(
            f"the object provided is unrecognized (must be of type {kind}): unexpected GroupVersion string: {given_version} ({summarize(data)})"
        )
    if (given_version, given_kind) != (want, kind):
        from longshore.api.definitions import by_kind

        group = given_version.rpartition("/")[0]
        place = (
            f'{given_kind} in version "{short if given_version != want else version}" cannot be handled as a {kind}: '
        )
        if not resource.builtin:
            if given_version != want:
                raise BodyError(
                    f"the API version in the data ({given_version}) does not match the expected API version ({want})"
                )
            kind = given_kind  # refused by validation
        elif (group, short, given_kind) in by_kind():
            if (group, given_kind) != (resource.group, kind):
                package = (resource.group or "core").split(".")[0]
                raise BodyError(f"{place}converting ({short}.{given_kind}) to ({package}.{kind}): unknown conversion")
            if given_version != want:
                raise BodyError(
                    f"the API version in the data ({given_version}) does not match the expected API version ({want})"
                )
        else:
            raise BodyError(
                f'{place}no kind "{given_kind}" is registered for version "{given_version}" in scheme "{SCHEME}"'
            )
    unknown: list[str] | None = None if validation == "Ignore" else []
    try:
        obj: dict[str, Any] = resource.decode(value, version, unknown)
    except DecodeError as error:
        raise BodyError(f'{kind} in version "{version}" cannot be handled as a {kind}: {error}') from None
    unknowns = [f'unknown field "{path}"' for path in unknown or ()]
    met = bool(data and strict and unknowns and resource.builtin and not yaml_body)
    warnings = _as_met(data, strict, unknowns) if met else strict + unknowns
    obj["apiVersion"], obj["kind"] = want, kind
    if yaml_body and strict:
        warnings_text = ["yaml: unmarshal errors:\n  " + "\n  ".join(strict), *warnings[len(strict) :]]
    else:
        warnings_text = warnings
    if warnings and validation == "Strict":
        raise BodyError(
            f'{kind} in version "{version}" cannot be handled as a {kind}: strict decoding error: {", ".join(warnings_text)}'
        )
    return obj, warnings if validation == "Warn" else []
