"""The five ways to change a Kubernetes object: JSON patch, merge patch, strategic merge patch, server-side apply, update.

Door: pure functions on JSON trees and a `schema.Node`; managedFields bookkeeping for all of them (`managedfields`).
Does not belong here: HTTP, storage, the kinds themselves (api/).
"""
