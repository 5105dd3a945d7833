"""Images as dockerd shows them: list with filters, inspect, history. Field names and rules: moby daemon/images."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import InvalidParameter, NotFound, SystemFailure
from longshore.engine.images.model import (
    ZERO_TIME,
    Image,
    host_architecture,
    inspect_config,
    legacy_config,
    parse_time,
    time_text,
)
from longshore.engine.images.references import Reference, parse_stored

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore

_LIST_FILTERS = {"dangling", "label", "label!", "before", "since", "reference", "until"}
_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}

Filters = Mapping[str, Sequence[str]]


def check_filters(filters: Filters, known: set[str]) -> None:
    """Raises InvalidParameter("invalid filter 'x'") for a filter that is not known."""
    for key in filters:
        if key not in known:
            raise InvalidParameter(f"invalid filter '{key}'")


def bool_filter(filters: Filters, key: str, default: bool) -> bool:
    """A filter with one boolean value. Raises InvalidParameter("invalid filter 'dangling=[x]'")."""
    values = list(filters.get(key) or ())
    if not values:
        return default
    if len(values) != 1 or values[0] not in _TRUE | _FALSE:
        raise InvalidParameter(f"invalid filter '{key}=[{' '.join(values)}]'")
    return values[0] in _TRUE


def until_filter(filters: Filters, now: int) -> int | None:
    """The moment of the one `until` filter in nanoseconds. Raises InvalidParameter."""
    values = list(filters.get("until") or ())
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return _until(values[0], now) if values else None


def _until(text: str, now: int) -> int:
    """A duration back from now, an RFC 3339 time or seconds, as nanoseconds."""
    if re.fullmatch(r"(\d+(\.\d*)?(h|m|s|ms|us|µs|ns))+", text):
        units = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1}
        found = re.findall(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)", text)
        return now - int(sum(float(number) * units[unit] for number, unit in found))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 10**9)
    moment = parse_time(text)
    if not moment:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"')
    return moment


def labels_match(filters: Filters, labels: Mapping[str, str]) -> bool:
    """`label` (all must hold) and `label!` (none may)."""

    def holds(wanted: str) -> bool:
        key, equals, value = wanted.partition("=")
        return key in labels and (not equals or labels[key] == value)

    return all(holds(wanted) for wanted in filters.get("label") or ()) and not any(
        holds(unwanted) for unwanted in filters.get("label!") or ()
    )


def _pattern_matches(pattern: str, name: Any) -> bool:
    """The familiar or the whole name, with tag or without, by path.Match rules."""
    forms = (name.familiar, name.familiar_name, str(name), name.repository)
    return any(_path_match(pattern, form) for form in forms)


def _path_match(pattern: str, text: str) -> bool:
    """Go's path.Match: "*" and "?" stay within one component."""
    depth = 0
    for character in pattern:
        if character == "[":
            depth += 1
        elif character == "]" and depth:
            depth -= 1
    if depth or pattern.endswith("\\"):
        raise SystemFailure("syntax error in pattern")
    wanted, given = pattern.split("/"), text.split("/")
    return len(wanted) == len(given) and all(
        fnmatch.fnmatchcase(g, w.replace("[^", "[!")) for w, g in zip(wanted, given, strict=True)
    )


def image_users(store: ImageStore) -> dict[str, int]:
    """Containers per image id: this engine's and those of the machine's other engines."""
    counts: dict[str, int] = {}
    for user in store.users() if store.users else ():
        counts[user.image] = counts.get(user.image, 0) + 1
    for (image,) in store.database.all("SELECT image FROM uses WHERE owner<>?", store.owner):
        counts[image] = counts.get(image, 0) + 1
    return counts


def list_images(
    store: ImageStore,
    *,
    all: bool = False,
    filters: Filters | None = None,
    shared_size: bool = False,
    manifests: bool = False,
) -> list[dict[str, Any]]:
    """GET /images/json: the newest first; intermediate images of builds only with `all`.

    A name of several platforms is one entry; manifests: with what it has of each.

    Raises InvalidParameter for filters, NotFound for before/since.
    """
    import time

    filters = filters or {}
    check_filters(filters, _LIST_FILTERS)
    dangling_set = bool(filters.get("dangling"))
    dangling = bool_filter(filters, "dangling", False)
    before = [_moment(store, name) for name in filters.get("before") or ()]
    since = [_moment(store, name) for name in filters.get("since") or ()]
    now = time.time_ns()
    until = min((_until(text, now) for text in filters.get("until") or ()), default=None)
    patterns = list(filters.get("reference") or ())
    for pattern in patterns:
        _path_match(pattern, "")
    users = image_users(store)
    parents = {row[0] for row in store.database.all("SELECT DISTINCT parent FROM images")}
    from longshore.engine.images import variants

    names = _names(store)
    members = variants.held_images(store)
    shown: list[dict[str, Any]] = []
    chains: list[str] = []
    entries = ((one, *named) for one in store.images() for named in names.get(one.id, {"": []}).items())
    for image, index, of_image in entries:
        if any(image.created >= moment for moment in before) or any(image.created <= moment for moment in since):
            continue
        if until is not None and image.created >= until:
            continue
        if (filters.get("label") or filters.get("label!")) and not labels_match(filters, image.labels):
            continue
        if not of_image and image.id in members:
            continue
        if patterns:
            of_image = [name for name in of_image if any(_pattern_matches(pattern, name) for pattern in patterns)]
            if not of_image:
                continue
        if not of_image:
            # Without a name: the end of a build that failed or lost its name is shown, a step in between is not.
            if image.id in parents and not all:
                continue
            if dangling_set and not dangling:
                continue
        elif dangling_set and dangling and any(name.tag for name in of_image):
            continue
        shown.append(
            {
                "Containers": users.get(image.id, 0),
                "Created": image.created // 10**9,
                "Id": image.id,
                "Labels": image.run_config.get("Labels"),
                "ParentId": image.parent,
                "RepoDigests": [name.familiar for name in of_image if name.digest],
                "RepoTags": [name.familiar for name in of_image if name.tag],
                "SharedSize": -1,
                "Size": image.size,
            }
        )
        variants.list_entry(store, shown[-1], image, index, users, manifests)
        chains.append(image.chain)
    if shared_size:
        _shared_sizes(store, shown, chains)
    return shown


def _names(store: ImageStore) -> dict[str, dict[str, list[Reference]]]:
    """The names of each image, those of one index apart from those of another and of none ("")."""
    found: dict[str, dict[str, list[Reference]]] = {}
    for image_id, text, index in store.database.all(
        "SELECT n.image, n.name, COALESCE(i.digest, '') FROM names n LEFT JOIN indexes i ON i.name=n.name ORDER BY n.name"
    ):
        found.setdefault(image_id, {}).setdefault(index, []).append(parse_stored(text))
    for groups in found.values():
        # The digest under which a registry knows one image of an index makes no entry of its own.
        if len(groups) > 1 and not any(name.tag for name in groups.get("", ())):
            lone = groups.pop("", [])
            next(iter(groups.values())).extend(lone)
    return found


def _shared_sizes(store: ImageStore, shown: list[dict[str, Any]], chains: list[str]) -> None:
    rows = {row[0]: (row[1], row[2]) for row in store.database.all("SELECT chain, parent, size FROM layers")}
    counts: dict[str, int] = {}
    for (chain,) in store.database.all("SELECT DISTINCT chain FROM images"):
        while chain in rows:
            counts[chain] = counts.get(chain, 0) + 1
            chain = rows[chain][0]
    for item, top in zip(shown, chains, strict=True):
        total, chain = 0, top
        while chain in rows:
            if counts.get(chain, 0) > 1:
                total += rows[chain][1]
            chain = rows[chain][0]
        item["SharedSize"] = total


def _moment(store: ImageStore, name: str) -> int:
    return store.resolve(name).created


def inspect(
    store: ImageStore, image: Image, *, version: tuple[int, int] = (1, 51), platform: str = "", reference: str = ""
) -> dict[str, Any]:
    """GET /images/NAME/json in the form of an API version: ContainerConfig before 1.45, the whole Config before 1.50.

    platform: "os/arch[/variant]" that the image must have. Raises NotFound.
    """
    if platform and not platform_matches(image, platform):
        raise NotFound(
            f"image with reference {reference or image.id} was found but its platform ({shown_platform(image)}) "
            f"does not match the specified platform ({platform})"
        )
    config = image.config
    stack = store.layers.stack(image.chain)
    data: dict[str, str] = {}
    if stack:
        folder = store.layers.folder / stack[0].folder
        if len(stack) > 1:
            data["LowerDir"] = ":".join(str(store.layers.diff_path(layer)) for layer in stack[1:])
        data |= {"MergedDir": f"{folder}/merged", "UpperDir": f"{folder}/diff", "WorkDir": f"{folder}/work"}
    shown: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": store.repo_tags(image.id),
        "RepoDigests": store.repo_digests(image.id),
        "Parent": image.parent,
        "Comment": config.get("comment") or _last_comment(config),
        "Created": config.get("created") or ZERO_TIME,
    }
    if version < (1, 45):
        if config.get("container"):
            shown["Container"] = config["container"]
        shown["ContainerConfig"] = legacy_config(config.get("container_config") or {})
    shown |= {
        "DockerVersion": config.get("docker_version") or "",
        "Author": config.get("author") or "",
        "Architecture": config.get("architecture") or host_architecture(),
        "Os": config.get("os") or "linux",
        "Size": image.size,
    }
    for name, field in (("Variant", "variant"), ("OsVersion", "os.version")):
        if config.get(field):
            shown[name] = config[field]
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    shown |= {
        "GraphDriver": {"Data": data or None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids} if image.diff_ids else {"Type": "layers"},
        "Metadata": {"LastTagTime": time_text(image.tagged) if image.tagged else ZERO_TIME},
        "Config": legacy_config(image.run_config) if version < (1, 50) else inspect_config(image.run_config),
    }
    return shown


def _last_comment(config: dict[str, Any]) -> str:
    history = config.get("history") or []
    return str(history[-1].get("comment") or "") if history else ""


def shown_platform(image: Image) -> str:
    variant = image.config.get("variant")
    return image.platform + (f"/{variant}" if variant else "")


def platform_matches(image: Image, wanted: str) -> bool:
    """Does an image fit "os/arch[/variant]"? A variant that is not given fits every one."""
    parts = wanted.split("/")
    have = [
        image.config.get("os") or "linux",
        image.config.get("architecture") or "",
        image.config.get("variant") or "",
    ]
    if parts[:2] != have[:2]:
        return False
    return len(parts) < 3 or not have[2] or parts[2] == have[2]


def history(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    """GET /images/NAME/history: the newest step first; ids of the images that we still have of the steps."""
    stack = list(reversed(store.layers.stack(image.chain)))
    shown: list[dict[str, Any]] = []
    used = 0
    for step in image.config.get("history") or []:
        size = 0
        if not step.get("empty_layer"):
            if used < len(stack):
                size = stack[used].size
            used += 1
        shown.insert(
            0,
            {
                "Comment": step.get("comment") or "",
                "Created": parse_time(step.get("created")) // 10**9,
                "CreatedBy": step.get("created_by") or "",
                "Id": "<missing>",
                "Size": size,
                "Tags": None,
            },
        )
    current: Image | None = image
    for item in shown:
        if current is None:
            break
        item["Id"] = current.id
        item["Tags"] = store.repo_tags(current.id) or None
        current = store.get(current.parent) if current.parent else None
    return shown
