"""The store: a multi-version log on SQLite with group commit; leases and watches; etcd's own client and face.

Door: the etcd v3 data model (`Store`) and etcd v3 gRPC. Does not belong here: Kubernetes kinds.
"""
