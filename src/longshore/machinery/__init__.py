"""What all parts share: HTTP core, streams, processes, namespaces, netlink, nftables, JSON helpers, PKI, paths.

Door: plain Python calls. Does not belong here: anything that knows a Kubernetes kind or a Docker endpoint.
"""
