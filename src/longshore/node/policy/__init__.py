"""NetworkPolicy of one node on nftables: who may reach the node's pods, and whom they may reach.

Door: the Kubernetes REST API in, nftables out. Does not belong here: addresses and routes of pods, Services.
"""
