"""`longshore manager`: the scheduler and the controllers in one process, each under its own identity."""

from __future__ import annotations

import argparse
import asyncio

from longshore.cli.cluster import host_name, load, networks
from longshore.cli.main import UserError, layout_of
from longshore.cli.parts.health import healthy
from longshore.machinery.run import run_part

#: All that are on by default, and those with which other machines join.
CONTROLLERS = "*,bootstrap-signer-controller,token-cleaner-controller,node-certificate-approving-controller"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--controllers", default=CONTROLLERS, help="comma-separated: '*', NAME or -NAME (default %(default)s)"
    )
    parser.add_argument(
        "--no-leader-elect", action="store_true", help="do not wait for the lease: only one manager runs"
    )
    parser.add_argument("--scheduler-config", default=None, help="a KubeSchedulerConfiguration file")


def run(arguments: argparse.Namespace) -> int:
    layout = layout_of(arguments)
    config = load(layout)
    if config is None:
        raise UserError(f"no cluster in {layout.data}: `longshore up` makes one")
    from longshore.client import config as client_config
    from longshore.client.config import load as load_kubeconfig
    from longshore.client.informer import InformerFactory
    from longshore.client.rest import Client
    from longshore.machinery import renewal
    from longshore.machinery.http import client_context, server_context
    from longshore.master.controllers.options import Options
    from longshore.master.controllers.server import serve as serve_controllers
    from longshore.master.metrics.server import serve as serve_metrics
    from longshore.master.scheduler.server import serve as serve_scheduler

    pki = layout.pki
    options = Options(
        controllers=tuple(arguments.controllers.split(",")),
        cluster_cidr=tuple(map(str, networks(config.pod_cidr))),
        service_cluster_ip_range=tuple(map(str, networks(config.service_cidr))),
        load_balancer_pool=tuple(map(str, networks(config.load_balancer_pool))),
        node_monitor_grace_period=config.node_monitor_grace_period,
        root_ca_file=layout.pki / "ca.crt",
        service_account_private_key_file=layout.pki / "sa.key",
        cluster_signing_cert_file=layout.pki / "ca.crt",
        cluster_signing_key_file=layout.pki / "ca.key",
        local_path=layout.data / "volumes",
    )
    elect = not arguments.no_leader_elect
    # A stable identity: a manager that was killed and started again holds its lease still and goes on at once.
    identity = f"{host_name()}_longshore"

    async def main() -> None:
        # One live copy of each resource for both, read as the controller manager, which may read everything.
        informers = InformerFactory(Client(load_kubeconfig(layout.kubeconfig("controller-manager"))))
        async with healthy(layout.run / "manager.sock"), asyncio.TaskGroup() as tasks:
            tasks.create_task(renewal.follow())
            tasks.create_task(
                serve_controllers(
                    kubeconfig=layout.kubeconfig("controller-manager"),
                    options=options,
                    leader_elect=elect,
                    identity=identity,
                    informers=informers,
                )
            )
            tasks.create_task(
                serve_scheduler(
                    kubeconfig=layout.kubeconfig("scheduler"),
                    config=arguments.scheduler_config,
                    leader_elect=elect,
                    identity=identity,
                    informers=informers,
                )
            )
            who = pki / "metrics-server.crt", pki / "metrics-server.key"
            own = pki / "metrics-server-tls.crt", pki / "metrics-server-tls.key"
            tasks.create_task(
                serve_metrics(
                    client=Client(client_config.load(layout.kubeconfig("metrics-server")), user_agent="metrics-server"),
                    kubelet_tls=client_context(ca=pki / "ca.crt", certificate=who[0], key=who[1]),
                    tls=server_context(*own, client_ca=pki / "front-proxy-ca.crt"),
                    host="::" if 6 in config.families else "0.0.0.0",
                )
            )

    return run_part(main)
