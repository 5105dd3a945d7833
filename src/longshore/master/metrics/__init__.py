"""The cluster's usage figures: metrics.k8s.io from the kubelets' own figures, for `kubectl top` and the autoscaler.

Doors: the kubelets' /metrics/resource in, an aggregated API (metrics.k8s.io/v1beta1) out. Does not belong here: keeping
figures (nothing is stored), Longshore's own metrics.
"""
