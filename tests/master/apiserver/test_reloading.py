"""What a running server reads again: its certificate, its clients' CAs, who is known by which issuer, who decides."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from longshore.machinery import pki
from support.cluster import eventually


def put(file: Path, data: bytes) -> Path:
    new = file.with_name(file.name + ".new")
    new.write_bytes(data)
    new.rename(file)
    return file


def status(running: Any, path: str, certificate: Path | None = None, key: Path | None = None, **headers: str) -> int:
    context = ssl.create_default_context(cafile=str(running.ca))
    if certificate is not None:
        context.load_cert_chain(str(certificate), str(key))
    connection = http.client.HTTPSConnection(running.host, running.port, context=context, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def serial(running: Any) -> str:
    context = ssl.create_default_context(cafile=str(running.ca))
    connection = http.client.HTTPSConnection(running.host, running.port, context=context, timeout=20)
    connection.connect()
    shown: Any = connection.sock.getpeercert()
    connection.close()
    return str(shown["serialNumber"])


def test_certificates(tmp_path: Path, start_server: Any) -> None:
    first, second = pki.make_ca("one"), pki.make_ca("two")
    people = {}
    for name, ca in (("a", first), ("b", second)):
        pair = pki.issue(ca, name, organizations=["system:masters"], client=True)
        people[name] = (tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        pair.write(*people[name])
    bundle = put(tmp_path / "clients.crt", first.certificate)
    running = start_server("--client-ca-file", str(bundle))
    nodes = "/api/v1/nodes"
    assert (status(running, nodes, *people["a"]), status(running, nodes, *people["b"])) == (200, 401)
    put(bundle, b"nonsense")  # is not taken
    put(bundle, second.certificate)
    eventually(lambda: status(running, nodes, *people["b"]) == 200)
    assert status(running, nodes, *people["a"]) == 401
    before = serial(running)
    folder = running.data / "pki"
    ca = pki.KeyPair.read(folder / "ca.crt", folder / "ca.key")
    made = pki.issue(ca, "kube-apiserver", names=["localhost", "127.0.0.1"], server=True)
    put(folder / "apiserver.key", made.key)
    put(folder / "apiserver.crt", made.certificate)
    eventually(lambda: serial(running) != before)


def test_configuration_files(tmp_path: Path, start_server: Any) -> None:
    group = "apiserver.config.k8s.io/v1"
    rules = tmp_path / "authorization.yaml"
    tokens = tmp_path / "tokens.csv"
    tokens.write_text("t0ken,jane,1\n")

    def authorization(*kinds: str) -> bytes:
        modes = [{"type": kind, "name": kind.lower()} for kind in kinds]
        return json.dumps({"kind": "AuthorizationConfiguration", "apiVersion": group, "authorizers": modes}).encode()

    def authentication(**more: Any) -> bytes:
        issuer = {"url": "https://issuer.example.com", "audiences": ["a"]}
        entry = {"issuer": issuer, "claimMappings": {"username": {"claim": "sub", "prefix": "x:"}}}
        return json.dumps({"kind": "AuthenticationConfiguration", "apiVersion": group, "jwt": [entry], **more}).encode()

    people = put(tmp_path / "authentication.yaml", authentication())
    put(rules, authorization("RBAC"))
    running = start_server(
        *("--authorization-config", str(rules), "--token-auth-file", str(tokens)),
        *("--authentication-config", str(people)),
    )

    def asked() -> int:
        return status(running, "/api/v1/nodes", Authorization="Bearer t0ken")

    def counted(kind: str, how: str, number: int) -> bool:
        name = f"apiserver_{kind}_config_controller_automatic_reloads_total"
        lines = running.send("GET", "/metrics").raw.decode().splitlines()
        return any(line.startswith(name) and f'status="{how}"}} {number}' in line for line in lines)

    assert asked() == 403
    put(rules, authorization("RBAC", "AlwaysAllow"))
    eventually(lambda: asked() == 200)
    assert counted("authorization", "success", 1)
    put(rules, authorization("RBAC", "Node"))  # Node has to be there from the start
    eventually(lambda: counted("authorization", "failure", 1))
    assert asked() == 200
    put(rules, authorization("RBAC"))
    eventually(lambda: asked() == 403)
    put(people, authentication(anonymous={"enabled": False}))  # may not change
    eventually(lambda: counted("authentication", "failure", 1))
    put(people, authentication(jwt=[]))
    eventually(lambda: counted("authentication", "success", 1))
    shown = running.send("GET", "/metrics").raw.decode()
    assert "apiserver_authentication_config_controller_last_config_info{" in shown
