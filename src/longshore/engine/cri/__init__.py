"""The CRI v1 service over gRPC: sandboxes, containers, images, streaming.

Door: CRI v1. Does not belong here: Pods as the API server knows them.
"""
