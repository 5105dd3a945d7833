"""kube-dns: DNS-based service discovery 1.1.0.

Door: DNS over UDP and TCP.
"""
