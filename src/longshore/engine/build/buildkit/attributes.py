"""What a client asks of the Dockerfile frontend: its attributes as settings.

Source of names: BuildKit frontend/dockerui/config.go, frontend/attestations; docker buildx build.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping

import orjson

from longshore.engine.build.options import BuildOptions
from longshore.engine.errors import InvalidParameter
from longshore.engine.images.model import host_architecture, time_text

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_VARIANTS = {"arm64": "v8", "arm": "v7"}


def host_platform() -> str:
    return f"linux/{host_architecture()}"


def normal_platform(text: str) -> str:
    """ "linux/arm64/v8" as "linux/arm64", "amd64" as "linux/amd64". Raises InvalidParameter."""
    parts = [part.lower() for part in text.strip().split("/")]
    if not all(parts) or len(parts) > 3:
        raise InvalidParameter(f'failed to parse target platform {text}: "{text}" is an invalid platform specifier')
    if len(parts) == 1:
        parts = ["linux", parts[0]] if parts[0] not in ("linux", "windows") else [parts[0], host_architecture()]
    parts[1] = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}.get(parts[1], parts[1])
    if len(parts) == 3 and (parts[1:] == ["arm64", "v8"] or parts[1:] == ["amd64", "v1"]):
        parts.pop()
    if len(parts) == 2 and parts[1] == "arm":
        parts.append("v7")
    return "/".join(parts)


def options_of(attributes: Mapping[str, str]) -> BuildOptions:
    """A frontend's attributes as build options (its platform is not set: there may be several).

    Raises InvalidParameter.
    """
    options = BuildOptions(
        dockerfile=attributes.get("filename") or "Dockerfile",
        pull=attributes.get("image-resolve-mode") == "pull",
        network=attributes.get("force-network-mode") or "default",
        target=attributes.get("target", ""),
        version="2",
    )
    if options.network == "sandbox":
        options.network = "default"
    if options.network not in ("default", "none", "host"):
        raise InvalidParameter(f"invalid netmode {options.network}")
    # With names only these stages are built anew.
    options.no_cache = attributes.get("no-cache") == ""
    options.no_cache_stages = tuple(word.lower() for word in attributes.get("no-cache", "").split(",") if word)
    for key, value in attributes.items():
        if key.startswith("build-arg:"):
            options.arguments[key.removeprefix("build-arg:")] = value
        elif key.startswith("label:"):
            options.labels[key.removeprefix("label:")] = value
    for word in filter(None, attributes.get("add-hosts", "").split(",")):
        name, equals, address = word.partition("=")
        if not equals or not name:
            raise InvalidParameter(f"failed to parse additional hosts: invalid key-value pair: {word}")
        options.hosts.append((name, address))
    limits = options.limits
    shm = attributes.get("shm-size", "")
    if shm and not shm.isdigit():
        raise InvalidParameter(f'failed to parse shm size: strconv.ParseInt: parsing "{shm}": invalid syntax')
    limits.shm_size = int(shm or 0)
    limits.cgroup_parent = attributes.get("cgroup-parent", "")
    limits.ulimits = [_ulimit(word) for word in _fields(attributes.get("ulimit", ""))]
    options.hostname = options.arguments.get("BUILDKIT_SANDBOX_HOSTNAME") or attributes.get("hostname", "")
    epoch = options.arguments.get("SOURCE_DATE_EPOCH") or ""
    if epoch:
        if not epoch.lstrip("-").isdigit():
            raise InvalidParameter(f"invalid SOURCE_DATE_EPOCH: {epoch}")
        options.created = time_text(int(epoch) * 10**9)
    return options


def _fields(text: str) -> list[str]:
    return next(csv.reader([text]), []) if text else []


def _ulimit(text: str) -> dict[str, object]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        raise InvalidParameter(f"failed to parse ulimit: invalid ulimit argument: {text}") from None


def platforms_of(attributes: Mapping[str, str]) -> tuple[list[str], bool]:
    """The platforms to build for ("" : this machine's, not named), and whether the result is an index in any case."""
    named = [normal_platform(word) for word in attributes.get("platform", "").split(",") if word]
    forced = attributes.get("build-arg:BUILDKIT_MULTI_PLATFORM") or attributes.get("multi-platform") or ""
    multiple = len(named) > 1
    if forced:
        wanted = forced in _TRUE
        if multiple and not wanted:
            raise InvalidParameter("conflicting config: returning multiple target platforms is not allowed")
        multiple = wanted
    return list(dict.fromkeys(named)) or [""], multiple


def platform_values(platform: str, target: str = "") -> dict[str, str | None]:
    """The ARGs of platforms that every Dockerfile may declare."""
    build = host_platform()
    wanted = platform or build
    parts = [*wanted.split("/"), "", ""]
    return {
        "BUILDPLATFORM": build,
        "BUILDOS": "linux",
        "BUILDOSVERSION": "",
        "BUILDARCH": host_architecture(),
        "BUILDVARIANT": "",
        "TARGETPLATFORM": wanted,
        "TARGETOS": parts[0],
        "TARGETOSVERSION": "",
        "TARGETARCH": parts[1],
        "TARGETVARIANT": parts[2],
        "TARGETSTAGE": target or "default",
    }


def attestations_of(attributes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Attestations asked for: kind to its settings. Raises InvalidParameter."""
    asked: dict[str, str] = {}
    for key, value in attributes.items():
        for prefix in ("attest:", "build-arg:BUILDKIT_ATTEST_"):
            if key.startswith(prefix):
                asked[key.removeprefix(prefix).lower()] = value
    found: dict[str, dict[str, str]] = {}
    for kind, text in asked.items():
        if kind not in ("provenance", "sbom"):
            raise InvalidParameter(f'unknown attestation type "{kind}"')
        values: dict[str, str] = {"version": "v1"} if kind == "provenance" else {}
        for word in _fields(text):
            name, _, value = word.partition("=")
            values[name] = value
        if values.pop("disabled", "false") in _TRUE:
            continue
        found[kind] = values
    return found


def cache_imports(attributes: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Where a client wants cached steps to be taken from: (type, settings). Raises InvalidParameter."""
    found: list[tuple[str, dict[str, str]]] = []
    text = attributes.get("cache-imports", "")
    if text:
        try:
            entries = orjson.loads(text)
            found += [(str(entry["Type"]), dict(entry.get("Attrs") or {})) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidParameter(f'failed to unmarshal cache-imports ("{text}")') from None
    for name in filter(None, attributes.get("cache-from", "").split(",")):
        entry = ("registry", {"ref": name})
        if entry not in found:
            found.append(entry)
    return found
