"""The controllers under leader election, on a lease of three seconds: python beside_manager.py KUBECONFIG IDENTITY"""

import asyncio
import sys

from longshore.client.leader import LeaderElection
from longshore.master.controllers.server import serve

times = LeaderElection.__init__.__kwdefaults__
assert times is not None
times.update(lease_duration=3.0, renew_deadline=2.0, retry_period=0.3)
asyncio.run(serve(kubeconfig=sys.argv[1], leader_elect=True, identity=sys.argv[2]))
