"""Claim: a small request costs 10 to 15 us of the server's CPU, half of aiohttp's and about as much as Go's net/http.

Peers in the same run: aiohttp's server, and Go's net/http where a Go toolchain is there (--go, or `go` in PATH). Each
server is a process of its own and answers a JSON body of 60 octets to GET on 16 kept connections; what counts is its
CPU time divided by the number of requests, the median of the rounds, the servers taking turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import figure

BODY = b'{"kind":"Status","apiVersion":"v1","metadata":{},"code":200}'
CONNECTIONS = 16

GO = """package main

import ("fmt"; "net"; "net/http"; "os")

func main() {
	body := []byte(`%s`)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil { panic(err) }
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	if len(os.Args) > 1 { panic(http.ServeTLS(l, handler, os.Args[1], os.Args[2])) }
	panic(http.Serve(l, handler))
}
"""


async def longshore(tls: list[str]) -> None:
    from longshore.machinery.http import Request, Response, Server, server_context

    def handler(request: Request) -> Response:
        return Response(200, BODY, (), "application/json")

    server = Server(handler)
    print(await server.listen_tcp("127.0.0.1", 0, ssl=server_context(*tls) if tls else None), flush=True)
    await asyncio.Event().wait()


async def aiohttp(tls: list[str]) -> None:
    from aiohttp import web

    from longshore.machinery.http import server_context

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=BODY, content_type="application/json")

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, sock, ssl_context=server_context(*tls) if tls else None).start()
    print(sock.getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def load(port: int, requests: int, tls: bool) -> float:
    """Sends the requests; seconds taken."""
    import ssl

    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    message = b"GET /api/v1/namespaces/default/pods/x HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: kubectl/v1.36\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n\r\n"

    async def one(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        for _ in range(n):
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(BODY))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one(requests // CONNECTIONS) for _ in range(CONNECTIONS)))
    return time.perf_counter() - began


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(argv: list[str], requests: int, tls: bool) -> tuple[float, float]:
    """(CPU microseconds of the server per request, requests a second)."""
    import uvloop

    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        uvloop.run(load(port, requests // 10, tls))
        before = cpu_of(process.pid)
        seconds = uvloop.run(load(port, requests, tls))
        return (cpu_of(process.pid) - before) / requests * 1e6, requests / seconds
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=("longshore", "aiohttp"))
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--go", default=shutil.which("go"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if args.serve:
        import uvloop

        uvloop.run({"longshore": longshore, "aiohttp": aiohttp}[args.serve](args.files))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    with tempfile.TemporaryDirectory() as folder:
        for tls in (False, True):
            compare(Path(folder), args, tls)


def compare(folder: Path, args: argparse.Namespace, tls: bool) -> None:
    files: list[str] = []
    if tls:
        from longshore.machinery import pki

        pair = pki.issue(pki.make_ca(), "localhost", names=["localhost"], server=True)
        files = [f"{folder}/tls.crt", f"{folder}/tls.key"]
        pair.write(Path(files[0]), Path(files[1]))
    servers = {n: [sys.executable, "-m", "bench.http", "--serve", n, *files] for n in ("longshore", "aiohttp")}
    if args.go:
        source = folder / "main.go"
        source.write_text(GO % BODY.decode())
        subprocess.run([args.go, "build", "-o", f"{folder}/server", str(source)], check=True)
        servers["net/http"] = [f"{folder}/server", *files]
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(args.rounds):
        for name, argv in servers.items():
            rounds[name].append(measure(argv, args.requests, tls))
    cpu = {name: statistics.median(c for c, _ in found) for name, found in rounds.items()}
    what = f"CPU of a small request{' over TLS' if tls else ''}"
    for peer in [n for n in servers if n != "longshore"]:
        figure(what, cpu["longshore"], "us", peer=peer, theirs=cpu[peer], target="15")


if __name__ == "__main__":
    main()
