"""`longshore demo`: the sample application's way through the whole house, each step shown as it happens.

Build its image from a Dockerfile on a base image made on the spot, ship it to the registry, apply its manifests, ask
it through every address it has, and read its log lines through the log query. Only the public doors are used.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import socket
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import yaml

from longshore.cli import cluster, control
from longshore.cli.main import UserError, complete, layout_of
from longshore.client.resources import DEPLOYMENTS, SERVICES
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Client, ClientError, client_context
from longshore.machinery.paths import Layout
from longshore.node.logs.server import DEFAULT_PORT

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
BUSYBOX = Path("/bin/busybox")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", type=Path, default=EXAMPLES / "shop", help="the application (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each step (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = cluster.load(layout)
    if config is None or not (arguments.path / "image" / "Dockerfile").exists():
        raise UserError(
            f"no sample application in {arguments.path}" if config else "no cluster: `longshore up` comes first"
        )
    demo = Demo(layout, config, arguments.path, arguments.timeout)
    complete(demo.run())
    return 0


class Demo:
    """One run of the sample; `times` keeps how long each step took, in seconds."""

    def __init__(
        self, layout: Layout, config: cluster.ClusterConfig, path: Path, timeout: float, *, quiet: bool = False
    ) -> None:
        self._layout = layout
        self._config = config
        self._path = path
        self._timeout = timeout
        self._quiet = quiet
        self._docker = Client(unix=layout.docker_socket)
        self._api = control.api_client(layout)
        self.times: dict[str, float] = {}
        self.image = f"localhost:{config.registry_port}/shop:1"

    async def run(self) -> None:
        """All steps; raises UserError with what went wrong."""
        try:
            async with self._step("base: busybox:latest from Debian's busybox-static"):
                await self._base_image()
            async with self._step(f"build: {self.image} from {self._path / 'image' / 'Dockerfile'}"):
                await self._build()
            async with self._step("ship: push to Longshore's registry"):
                await self._push()
            async with self._step("run: apply the manifests, wait until they are ready"):
                await self._apply()
                await self._wait_ready("shop", ("front", "back"))
            async with self._step("ask the front tier"):
                await self._ask()
            async with self._step("logs: the lines it wrote, through the log query"):
                await self._logs()
        finally:
            await self._docker.close()
            await self._api.close()
        self._say("")
        for name, seconds in self.times.items():
            self._say(f"  {name.split(':')[0]:24} {seconds:6.2f} s")
        self._say(
            f"\nThe front tier answers on http://{cluster.authority(self._config.nodes[0].ip, 30080)}/cgi-bin/tier"
        )

    def _say(self, words: str) -> None:
        if not self._quiet:
            print(words, flush=True)

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        self._say(f"\n==> {name}")
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise UserError(f"{name}: not done after {self._timeout:g} s") from None
        except (StatusError, OSError, ClientError) as error:
            raise UserError(f"{name}: {error}") from error
        self.times[name] = time.monotonic() - started

    async def _docker_stream(self, path: str, query: dict[str, str], body: bytes, **headers: str) -> None:
        """A Docker request whose answer is a stream of JSON messages, shown as they come."""
        url = f"http://localhost/v1.47{path}?{urlencode(query)}"
        answer = await self._docker.request(
            "POST", url, headers=[(k.replace("_", "-"), v) for k, v in headers.items()], body=body
        )
        rest = b""
        if answer.status >= 400:
            raise OSError((await answer.read()).decode(errors="replace"))
        async for chunk in answer.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, map(bytes.strip, lines)):
                message = orjson.loads(line)
                if "error" in message:
                    raise OSError(message["error"])
                words = message.get("stream") or message.get("status") or ""
                if words.strip() and "progressDetail" not in message:
                    self._say("    " + words.rstrip())

    async def _base_image(self) -> None:
        found = await self._docker.request("GET", "http://localhost/v1.47/images/busybox:latest/json")
        await found.read()
        if found.status == 200:
            self._say("    already there")
            return
        body = await asyncio.to_thread(busybox_root)
        await self._docker_stream(
            "/images/create",
            {"fromSrc": "-", "repo": "busybox", "tag": "latest"},
            body,
            content_type="application/x-tar",
        )

    async def _build(self) -> None:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for file in sorted((self._path / "image").iterdir()):
                tar.add(file, arcname=file.name)
        await self._docker_stream("/build", {"t": self.image}, context.getvalue(), content_type="application/x-tar")

    async def _push(self) -> None:
        name, tag = self.image.rsplit(":", 1)
        await self._docker_stream(f"/images/{name}/push", {"tag": tag}, b"", x_registry_auth="e30=")

    async def _apply(self) -> None:
        text = (self._path / "shop.yaml").read_text().replace("localhost:5000/shop:1", self.image)
        for obj in yaml.safe_load_all(text):
            applied = await control.apply(self._api, obj)
            self._say(f"    {applied['kind'].lower()}/{applied['metadata']['name']} applied")

    async def _wait_ready(self, namespace: str, names: tuple[str, ...]) -> None:
        waiting = set(names)
        found = await self._api.list(DEPLOYMENTS, namespace)
        version = found["metadata"]["resourceVersion"]
        for deployment in found["items"]:
            self._note_ready(deployment, waiting)
        while waiting:
            async for batch in self._api.watch(DEPLOYMENTS, namespace, resource_version=version):
                for kind, deployment in batch:
                    version = deployment["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        self._note_ready(deployment, waiting)
                if not waiting:
                    return

    def _note_ready(self, deployment: dict[str, Any], waiting: set[str]) -> None:
        name, wanted = deployment["metadata"]["name"], deployment["spec"]["replicas"]
        status = deployment.get("status", {})
        fresh = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        if name in waiting and fresh and status.get("readyReplicas", 0) == status.get("updatedReplicas", 0) == wanted:
            waiting.discard(name)
            self._say(f"    deployment/{name}: {wanted} of {wanted} ready")

    async def _ask(self) -> None:
        service = await self._api.get(SERVICES, "front", "shop")
        cluster_ip = service["spec"]["clusterIP"]
        name = f"front.shop.svc.{self._config.cluster_domain}"
        doors = [(f"node port of {node.name}", node.ip, 30080) for node in self._config.nodes]
        if self._config.nodes[0].netns is None:
            # The host is the node itself; where nodes are namespaces it stands outside, as a machine beside them.
            doors.insert(0, ("ClusterIP", cluster_ip, 80))
            address = await asyncio.to_thread(resolve, name, self._config.cluster_dns)
            doors.append((f"DNS name {name}", address, 80))
        for door, address, port in doors:
            text = await self._get(f"http://{cluster.authority(address, port)}/cgi-bin/tier")
            self._say(f"    {door}: " + " / ".join(text.split("\n")))
            if "token accepted" not in text:
                raise OSError(f"the front tier's answer through its {door} lacks the back tier's: {text!r}")

    async def _get(self, url: str) -> str:
        client = Client()
        try:
            while True:
                try:
                    answer = await client.request("GET", url, timeout=10)
                    return (await answer.read()).decode().strip()
                except (OSError, ClientError):
                    # The rules follow the endpoints by a few milliseconds; the step's own time bounds this.
                    await asyncio.sleep(0.02)
        finally:
            await client.close()

    async def _logs(self) -> None:
        pki = self._layout.pki
        context = client_context(ca=pki / "ca.crt", certificate=pki / "admin.crt", key=pki / "admin.key")
        client = Client(ssl=context)
        query = '{namespace="shop"} |= "answers"'
        shown = 0
        try:
            while shown == 0:
                for node in self._config.nodes:
                    address = cluster.authority(node.ip, DEFAULT_PORT)
                    url = f"https://{address}/loki/api/v1/query_range?query={quote(query)}&limit=4"
                    answer = await client.request("GET", url, timeout=10)
                    body = await answer.read()
                    if answer.status != 200:
                        raise OSError(f"the log query answers {answer.status}: {body.decode(errors='replace')}")
                    for stream in orjson.loads(body)["data"]["result"]:
                        for _, line in stream["values"]:
                            shown += 1
                            self._say(f"    {stream['stream']['pod']}: {line}")
                await asyncio.sleep(0 if shown else 0.02)
        finally:
            await client.close()


def busybox_root() -> bytes:
    """A root file system as a tar: Debian's static busybox, a link for each applet, the usual folders and users."""
    import subprocess

    if not BUSYBOX.exists():
        raise UserError("Debian's busybox-static is not installed (scripts/setup installs it)")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
            tar.addfile(info, io.BytesIO(data))

        for folder in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var", "var/log"):
            add(folder, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("bin/busybox", tarfile.REGTYPE, 0o755, BUSYBOX.read_bytes())
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        add(
            "etc/passwd",
            tarfile.REGTYPE,
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nnogroup:x:65534:\n")
    return out.getvalue()


def resolve(name: str, server: str, timeout: float = 2.0, tries: int = 10) -> str:
    """The first address of a name, of the DNS server's own IP family, asked of it over UDP. Raises OSError."""
    from longshore.wire import dns

    family, kind = (socket.AF_INET6, dns.AAAA) if ":" in server else (socket.AF_INET, dns.A)
    for _ in range(tries):
        question = dns.Message(id=int.from_bytes(os.urandom(2)), questions=[dns.Question(name + ".", kind)])
        with socket.socket(family, socket.SOCK_DGRAM) as ask:
            ask.settimeout(timeout)
            try:
                ask.connect((server, 53))
                ask.send(dns.encode(question))
                answer = dns.decode(ask.recv(4096))
            except OSError:
                time.sleep(0.05)
                continue
        for record in answer.answers:
            if record.type == kind:
                return str(record.data)
    raise OSError(f"{server} does not know {name}")
