"""The pod network between nodes: a route to each other node's pods, through VXLAN where no link joins them directly.

Door: the Kubernetes REST API in (Nodes), rtnetlink out. Does not belong here: addresses of pods (engine/cri), Services.
"""
