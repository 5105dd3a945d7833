"""The business hall: authentication, authorization, admission, resources, watch cache, discovery, OpenAPI, proxying.

Door: the Kubernetes REST API. Does not belong here: controllers, the rules of single kinds (api/).
"""
