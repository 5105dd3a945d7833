"""A real API server for a module's tests: its own process, store in memory or on disk, free port, unprivileged."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Running:
    """A started server and an administrator's connection to it."""

    def __init__(self, folder: Path, *flags: str, data: Path | None = None) -> None:
        """data: the folder of a server that ran before."""
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self.data = data or folder / "data"
        command = [sys.executable, "-m", "longshore.master.apiserver", "--data-dir", str(self.data), "--secure-port", "0",
                   "--write-kubeconfig", str(self.kubeconfig), *flags]  # fmt: skip
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log)
        deadline = time.monotonic() + 60
        while not self.kubeconfig.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text()[-3000:])
            time.sleep(0.02)
        config = yaml.safe_load(self.kubeconfig.read_bytes())
        self.url = config["clusters"][0]["cluster"]["server"]
        parts = urllib.parse.urlsplit(self.url)
        self.host, self.port = parts.hostname, parts.port
        pki = self.data / "pki"
        self.ca, self.certificate, self.key = pki / "ca.crt", pki / "admin.crt", pki / "admin.key"
        self.context = ssl.create_default_context(cafile=str(self.ca))
        self.context.load_cert_chain(str(self.certificate), str(self.key))

    def connect(self, timeout: float = 30) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.host or "", self.port, context=self.context, timeout=timeout)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Any]:
    """Starts a server of the test's own: start_server(*flags, data=...)."""
    started: list[Running] = []

    def start(*flags: str, data: Path | None = None) -> Running:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(Running(folder, *flags, data=data))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def kubectl(server: Running, tmp_path: Path) -> Any:
    """kubectl as a function of its arguments; gives its output, fails the test when it fails."""
    import shutil

    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is absent")

    def run(*args: str, stdin: str = "", ok: bool = True) -> str:
        env = {**os.environ, "KUBECONFIG": str(server.kubeconfig), "HOME": str(tmp_path)}
        done = subprocess.run([program, *args], input=stdin, capture_output=True, text=True, env=env, timeout=60)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stdout + done.stderr

    return run
