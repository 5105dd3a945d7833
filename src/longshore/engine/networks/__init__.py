"""Docker networks: bridges, endpoints, addresses, published ports, embedded DNS.

Door: `NetworkService`. Does not belong here: Kubernetes Services.
"""
