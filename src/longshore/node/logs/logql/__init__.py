"""LogQL: text to tree, tree to a pipeline of stages over lines, and metric queries over its result.

Source: the language as Grafana Loki documents it (LogQL: log queries, metric queries). No I/O here.
"""
