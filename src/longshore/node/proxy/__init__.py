"""kube-proxy: Services on nftables.

Door: the Kubernetes REST API in, nftables out.
"""
