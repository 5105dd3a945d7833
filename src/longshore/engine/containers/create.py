"""Make a container: check what was asked, merge it with the image, reserve name, root and volumes.

Source: Docker Engine API, "Create a container"; the texts of errors are dockerd's.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.engine.networks.validation import check_endpoint, valid_mac

from . import links, mountspec, preparation, rootfs, validate, versions
from .model import CONFIG_FIELDS, HOST_FIELDS, Container, endpoint, new_id, normalized, now

if TYPE_CHECKING:
    from longshore.engine.images.model import Image

    from .service import ContainerService

Json = dict[str, Any]
_CONFIG_NAMES = frozenset(name.lower() for name, _, _ in CONFIG_FIELDS)


def read_body(body: Json) -> tuple[Json, Json, Json]:
    """(Config, HostConfig, endpoint settings by network) of a create request's body. Raises InvalidParameter without a Config."""
    if not any(key.lower() in _CONFIG_NAMES for key in body):
        raise InvalidParameter("config cannot be empty in order to create a container")
    config = normalized(body, CONFIG_FIELDS)
    lower = {key.lower(): value for key, value in body.items()}
    host = normalized(lower.get("hostconfig") or {}, HOST_FIELDS)
    networking = lower.get("networkingconfig") or {}
    wanted = {key.lower(): value for key, value in networking.items()}.get("endpointsconfig") or {}
    for name in ("Cmd", "Entrypoint", "Shell"):
        if isinstance(config.get(name), str):
            config[name] = [config[name]]
    health = config.get("Healthcheck")
    if health:
        config["Healthcheck"] = {k: v for k, v in health.items() if v}
    return config, host, wanted


def _manifest(service: ContainerService, image: Image, reference: str) -> Json:
    """The descriptor of the image's manifest, where it is one of several platforms' under its name."""
    from longshore.engine.images.variants import index_of

    index = index_of(service.images, reference)
    members = index.members if index is not None else ()
    return next((member.entry for member in members if member.image.id == image.id), {})


_CONFIG_NAMES = frozenset(field[0].lower() for field in CONFIG_FIELDS)


async def create(
    service: ContainerService, body: Json, *, name: str = "", platform: str = "", version: tuple[int, int] = (1, 51)
) -> tuple[Container, list[str]]:
    """Make a container that is not started; returns it and the warnings. Raises EngineError classes."""
    config, host, wanted = read_body(body)
    if "default" in wanted:
        wanted = {("bridge" if name == "default" else name): settings for name, settings in wanted.items()}
    hostname_given = bool(config["Hostname"])
    if host["RestartPolicy"] is None:
        host["RestartPolicy"] = {}
    host["NetworkMode"] = "bridge" if host["NetworkMode"] in ("", "default") else host["NetworkMode"]
    adapted = versions.adapt(config, host, wanted, version)
    validate.check_config(config)
    for mount in host.get("Mounts") or []:
        mountspec.check_option_kinds(mount)
    validate.check_host(host)
    service.configuration.fill(host)
    validate.fill_host(host)
    validate.check_modes(config, host, hostname_given=hostname_given)
    warnings = validate.check_platform(host, service.runtimes)
    if service.owners is not None:
        validate.check_remapped(host)
    if any(mount.get("Type") == "image" for mount in host.get("Mounts") or []):
        warnings.append("Image mount is an experimental feature")
    for mode in ("IpcMode", "PidMode"):
        if host[mode].startswith("container:"):
            try:
                other = service.store.find(host[mode].partition(":")[2])
            except NotFound as error:
                raise InvalidParameter(error.message) from None
            host[mode] = f"container:{other.id}"
    if host["NetworkMode"].startswith("container:"):
        with contextlib.suppress(EngineError):
            host["NetworkMode"] = f"container:{service.store.find(host['NetworkMode'].partition(':')[2]).id}"
    mac = _check_networks(service, config, host, wanted)
    image = None
    if config["Image"]:
        image = service.find_image(config["Image"], platform)
        validate.merge_image_config(config, image.run_config)
    if config["Entrypoint"] == [""]:
        config["Entrypoint"] = None
    if not config["Entrypoint"] and not config["Cmd"]:
        raise InvalidParameter("no command specified")
    validate.check_log(host)
    security = validate.parse_security_options(
        host["SecurityOpt"], no_new_privileges=service.configuration.no_new_privileges
    )
    validate.check_storage_options(host.get("StorageOpt"))
    if host["Privileged"] or host["PidMode"] == "host" or host["IpcMode"] == "host":
        # As dockerd shows it: with shared namespaces no label keeps processes apart.
        host["SecurityOpt"] = [*(host["SecurityOpt"] or []), "label=disable"]
    linked = links.register(service, host)
    command = [*(config["Entrypoint"] or []), *(config["Cmd"] or [])]
    id = new_id()
    full_name = service.store.reserve(name, id)
    folder = service.store.root / id
    container = Container(
        id=id,
        name=full_name,
        folder=folder,
        created=now(),
        path=command[0],
        args=command[1:],
        config=config,
        host=host,
        image_id=image.id if image is not None else "",
        image_manifest=_manifest(service, image, config["Image"]) if image is not None else {},
        security_options=security,
        links=linked,
    )
    if not config["Hostname"]:
        if host["UTSMode"] == "host" or host["NetworkMode"] == "host":
            import socket

            config["Hostname"] = socket.gethostname()
        else:
            config["Hostname"] = container.short
    if mac:
        config["MacAddress"] = mac
    _set_networks(service, container, wanted)
    try:
        folder.mkdir(mode=0o710)
        service.roots.prepare(container, image)
        await _set_mounts(service, container, version)
        if config["WorkingDir"]:
            root = service.roots.mount(container)
            try:
                service.roots.make_workdir(container, root, config["WorkingDir"])
            finally:
                service.roots.unmount(container)
        container.number = service.store.next_number()
        container.save()
        await service.keep(container)
    except BaseException:
        service.store.free_name(full_name, id)
        for mount in container.mounts:
            if mount["Type"] == "volume":
                service.volumes.release(mount["Name"], id)
        with contextlib.suppress(Exception):
            service.roots.release(container)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    service.store.add(container)
    service.event(container, "create")
    return container, warnings + adapted


def _check_networks(service: ContainerService, config: Json, host: Json, wanted: Json) -> str:
    """Check endpoint settings; returns the MAC address asked for. Raises InvalidParameter."""
    mode = host["NetworkMode"]
    mac = config.get("MacAddress") or ""
    for name, settings in wanted.items():
        settings = settings or {}
        network = service.networks.find(name)
        try:
            check_endpoint(network, name, settings)
        except InvalidParameter as error:
            raise InvalidParameter(f"invalid config for network {name}: {error.message}") from None
        own = settings.get("MacAddress") or ""
        if own and name == mode:
            mac = own
    if mac and not valid_mac(mac):
        raise InvalidParameter(f"invalid config for network {mode}: invalid MAC address {mac}")
    return mac


def _set_networks(service: ContainerService, container: Container, wanted: Json) -> None:
    """The container's endpoint settings: those asked for, and always the one that its network mode names."""
    mode = container.network_mode
    if mode.startswith("container:") or container.config.get("NetworkDisabled"):
        return
    by_name = {name: dict(settings or {}) for name, settings in wanted.items()}
    main = service.networks.find(mode)
    aliases = {n for n in (mode, main.name if main else mode, main.id if main else mode) if n}
    first = next((by_name.pop(n) for n in list(by_name) if n in aliases), None)
    if first is not None or not by_name:
        container.networks[main.name if main and mode not in ("host", "none") else mode] = endpoint(first)
    for name, settings in by_name.items():
        if mode in ("host", "none"):
            continue
        network = service.networks.find(name)
        container.networks[network.name if network else name] = endpoint(settings)
    main_name = next(iter(container.networks))
    mac = container.config.get("MacAddress")
    for name, settings in container.networks.items():
        own = settings["MacAddress"] or (mac if name == main_name else "") or ""
        settings["MacAddress"] = own
        if own:
            settings["_mac"] = own


async def _set_mounts(service: ContainerService, container: Container, version: tuple[int, int]) -> None:
    """Decide on the mount points, make the volumes that are missing and fill empty ones from the image."""
    roots = (str(service.images.root), str(service.store.root.parent))
    host, config = container.host, container.config
    points: dict[str, Json] = {}
    for entry in host["VolumesFrom"] or []:
        name, mode = mountspec.parse_volumes_from(entry)
        try:
            other = service.store.find(name)
        except NotFound as error:
            raise InvalidParameter(error.message) from None
        for point in other.mounts:
            copy = dict(point)
            copy["RW"] = copy["RW"] and not mountspec.readonly(mode)
            copy["Mode"] = ""
            copy["_nocopy"] = True
            points[copy["Destination"]] = copy
    binds: set[str] = set()
    tmpfs = {posixpath.normpath(target) for target in host.get("Tmpfs") or {}}
    for raw in host["Binds"] or []:
        try:
            point = mountspec.parse_bind(raw, host["VolumeDriver"])
        except InvalidParameter as error:
            # dockerd gives these no class of their own; but a volume's name is checked by its driver.
            if error.message.startswith("create "):
                raise
            raise SystemFailure(error.message) from None
        if point["Destination"] in binds or point["Destination"] in tmpfs:
            raise InvalidParameter(f"Duplicate mount point: {point['Destination']}")
        binds.add(point["Destination"])
        mountspec.guard_engine(point, roots, asked=bool(mountspec.PROPAGATION & set(point["Mode"].split(","))))
        points[point["Destination"]] = point
    for mount in host.get("Mounts") or []:
        point = mountspec.parse_mount(mount)
        mountspec.guard_engine(point, roots, asked=bool((mount.get("BindOptions") or {}).get("Propagation")))
        if point["Destination"] in binds:
            raise InvalidParameter(f"Duplicate mount point: {mount['Target']}")
        binds.add(point["Destination"])
        points[point["Destination"]] = point
    for destination in config["Volumes"] or {}:
        clean = posixpath.normpath(destination)
        if clean in points or clean in tmpfs:
            continue
        if clean in ("/", "//"):
            raise InvalidParameter("invalid specification: destination can't be '/'")
        points[clean] = {
            "Type": "volume",
            "Name": "",
            "Source": "",
            "Destination": clean,
            "Driver": "local",
            "Mode": "",
            "RW": True,
            "Propagation": "",
        }
    if version < (1, 44):
        # Read-only mounts were read-only at the top alone before.
        for point in points.values():
            if point["Type"] == "bind" and not point["RW"]:
                point["_readonly"] = "top"
    fill: list[Json] = []
    made: list[str] = []
    container.mounts = list(points.values())
    for point in container.mounts:
        if point["Type"] == "image":
            service.prepare_image_mount(container, point)
        if point["Type"] != "volume":
            continue
        fresh = not point["Name"] or not service.volumes.exists(point["Name"])
        anonymous = not point["Name"]
        point["Name"] = service.volumes.create(
            point["Name"], point["Driver"], options=point.pop("_options", None), labels=point.pop("_labels", None)
        )
        if anonymous:
            point["_anonymous"] = True
        if fresh:
            made.append(point["Name"])
        point["Source"] = str(service.volumes.path(point["Name"]))
        service.volumes.use(point["Name"], container.id)
        if not point.get("_nocopy") and container.image_id:
            folder = service.volumes.path(point["Name"])
            if not folder.is_dir() or point.get("_subpath") or not any(folder.iterdir()):
                fill.append(point)
    if not container.host["AutoRemove"]:
        for name in made:
            await service.in_thread(service.volumes.keep, name)
    if not fill:
        return
    root = service.roots.mount(container)
    try:
        for point in fill:
            try:
                folder = await service.in_thread(service.volumes.mount, point["Name"], container.id)
            except SystemFailure as error:
                raise SystemFailure(f"failed to populate volume: {error.message}") from None
            fd = -1
            try:
                if point.get("_subpath"):
                    fd = preparation.subpath(folder, point["_subpath"])
                    folder = Path(f"/proc/self/fd/{fd}")
                if folder.is_dir():
                    await service.in_thread(rootfs.copy_up, root, point["Destination"], folder)
            except EngineError:
                # What is wrong with a sub-path is told when the container starts.
                if not point.get("_subpath"):
                    raise
            finally:
                if fd >= 0:
                    os.close(fd)
                service.volumes.unmount(point["Name"], container.id)
    finally:
        service.roots.unmount(container)
