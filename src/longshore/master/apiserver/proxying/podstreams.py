"""pods/log, pods/exec, pods/attach, pods/portforward: options, checks, and the kubelet's URL.

Source: k8s.io/kubernetes/pkg/registry/core/pod/strategy.go (LogLocation, streamLocation), rest/subresources.go, rest/log.go.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any
from urllib.parse import quote, urlencode

from longshore.api import times
from longshore.machinery.errors import Cause, StatusError, bad_request, invalid, not_found
from longshore.machinery.http import ClientResponse, Request, Response
from longshore.machinery.streams import Refused, websocket
from longshore.master.apiserver.context import Object

from .kubelets import Kubelets, Location

_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def flag(request: Request, name: str) -> bool:
    """A boolean query option as Kubernetes converts one: there, and not "false" or "0"."""
    return name in request.query and request.param(name).lower() not in ("false", "0")


def container_of(pod: Object, wanted: str) -> str:
    """The container asked for; the only one when none is. 400 in upstream's words."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    names: dict[str, list[str]] = {field: [c["name"] for c in spec.get(field) or ()] for field in _CONTAINERS}
    if wanted:
        if not any(wanted in found for found in names.values()):
            raise bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(names["containers"]) == 1:
        return names["containers"][0]
    if not names["containers"]:
        raise bad_request(f"a container name must be specified for pod {name}")
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(names['containers'])}]"
    if names["initContainers"]:
        message += f" or one of the init containers: [{' '.join(names['initContainers'])}]"
    if names["ephemeralContainers"]:
        message += f" or one of the ephemeral containers: [{' '.join(names['ephemeralContainers'])}]"
    raise bad_request(message)


def kubelet_of(pod: Object, kubelets: Kubelets) -> Location:
    """The kubelet that runs a pod; 400 when none does."""
    node = pod["spec"].get("nodeName")
    if not node:
        raise bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
    try:
        return kubelets.location(node)
    except StatusError as error:
        if error.reason == "NotFound":
            raise not_found("", "pods", node) from None
        raise


def _url(location: Location, path: str, pod: Object, container: str, query: list[tuple[str, str]]) -> str:
    meta = pod["metadata"]
    parts = [path, meta["namespace"], meta["name"], *([container] if container else [])]
    text = "/".join(quote(p, safe="") for p in parts)
    return f"{location.url}/{text}" + (f"?{urlencode(sorted(query, key=lambda q: q[0]))}" if query else "")


# ---- exec and attach


def stream_options(request: Request, kind: str) -> Object:
    """PodExecOptions or PodAttachOptions of a request; kind names which."""
    out: Object = {"kind": kind, "apiVersion": "v1"}
    for name in ("stdin", "stdout", "stderr", "tty"):
        if flag(request, name):
            out[name] = True
    if container := request.param("container"):
        out["container"] = container
    if kind == "PodExecOptions":
        out["command"] = list(request.query.get("command", []))
    return out


def stream_url(pod: Object, options: Object, kubelets: Kubelets) -> str:
    """The kubelet's URL for an exec or attach."""
    container = container_of(pod, options.get("container", ""))
    location = kubelet_of(pod, kubelets)
    names = (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))
    query = [(short, "1") for name, short in names if options.get(name)]
    query += [("command", c) for c in options.get("command", ())]
    path = "exec" if options["kind"] == "PodExecOptions" else "attach"
    return _url(location, path, pod, container, query)


def forward_options(request: Request) -> Object:
    """PodPortForwardOptions of a request."""
    ports: list[int] = []
    for value in request.query.get("ports", []):
        for text in value.split(","):
            if not text.isdigit():
                raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
            ports.append(int(text))
    return {"kind": "PodPortForwardOptions", "apiVersion": "v1", **({"ports": ports} if ports else {})}


def forward_url(pod: Object, options: Object, kubelets: Kubelets) -> str:
    location = kubelet_of(pod, kubelets)
    ports = options.get("ports")
    query = [("port", ",".join(map(str, ports)))] if ports else []
    return _url(location, "portForward", pod, "", query)


# ---- logs


def log_options(request: Request, pod: str) -> Object:
    """PodLogOptions of a request; 400 for what is no number or time, 422 for what is out of bounds."""
    out: Object = {"kind": "PodLogOptions", "apiVersion": "v1"}
    if container := request.param("container"):
        out["container"] = container
    for name in ("follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"):
        if flag(request, name):
            out[name] = True
    for name in ("sinceSeconds", "tailLines", "limitBytes"):
        text = request.param(name)
        if text:
            try:
                out[name] = int(text)
            except ValueError:
                raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
    if text := request.param("sinceTime"):
        try:
            times.parse(text)
        except times.TimeError:
            raise bad_request(
                f'parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse "{text}" as "2006"'
            ) from None
        out["sinceTime"] = text
    if stream := request.param("stream"):
        out["stream"] = stream
    if causes := _log_causes(out):
        raise invalid("", "PodLogOptions", pod, causes)
    return out


def _log_causes(options: Object) -> list[Cause]:
    causes: list[Cause] = []

    def wrong(field: str, value: Any, detail: str) -> None:
        causes.append(Cause("FieldValueInvalid", f"Invalid value: {value}: {detail}", field))

    tail, limit, since = (options.get(n) for n in ("tailLines", "limitBytes", "sinceSeconds"))
    if tail is not None and tail < 0:
        wrong("tailLines", tail, "must be greater than or equal to 0")
    if limit is not None and limit < 1:
        wrong("limitBytes", limit, "must be greater than 0")
    if since is not None and "sinceTime" in options:
        detail = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
        causes.append(Cause("FieldValueForbidden", detail, "[]"))
    elif since is not None and since < 1:
        wrong("sinceSeconds", since, "must be greater than 0")
    stream = options.get("stream")
    if stream is not None and stream not in ("All", "Stdout", "Stderr"):
        supported = '"All", "Stderr", "Stdout"'
        causes.append(
            Cause("FieldValueNotSupported", f'Unsupported value: "{stream}": supported values: {supported}', "stream")
        )
    elif stream in ("Stdout", "Stderr") and tail is not None:
        detail = "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now"
        causes.append(Cause("FieldValueForbidden", detail, "[]"))
    return causes


def log_url(pod: Object, options: Object, kubelets: Kubelets) -> str | None:
    """The kubelet's URL for a log; None for a pod that no node runs yet."""
    container = container_of(pod, options.get("container", ""))
    if not pod["spec"].get("nodeName"):
        return None
    location = kubelet_of(pod, kubelets)
    query = [(name, "true") for name in ("follow", "previous", "timestamps") if options.get(name)]
    query += [(n, str(options[n])) for n in ("sinceSeconds", "sinceTime", "tailLines", "limitBytes") if n in options]
    if options.get("stream") in ("Stdout", "Stderr"):
        query.append(("stream", options["stream"]))
    return _url(location, "containerLogs", pod, container, query)


async def log_messages(request: Request, log: ClientResponse) -> Response | None:
    """A log as messages of a WebSocket: what the client says is read over, an empty message shows that it stands.

    Returns the refusal of a handshake that is wrong. Source: k8s.io/streaming wsstream.Reader, a streamer's protocols.
    """
    try:
        socket = await websocket.accept(request, ("", "binary.k8s.io", "base64.binary.k8s.io"))
    except Refused as refused:
        return refused.response
    text = socket.protocol == "base64.binary.k8s.io"
    socket.send(b"", text=text)

    async def listen() -> None:
        while await socket.receive() is not None:
            pass

    async def send() -> None:
        async for piece in log.chunks():
            socket.send(base64.b64encode(piece) if text else piece, text=text)
            await socket.drain()

    tasks = [asyncio.create_task(send()), asyncio.create_task(listen())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.exception()
        socket.close()
        await socket.drain()
    except ConnectionError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        socket.stream.close()
    return None
