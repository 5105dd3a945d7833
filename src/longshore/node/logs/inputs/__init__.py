"""Inputs over the network: each takes events in its protocol and gives them on by tag, whether to the store or to a
Fluentd pipeline. What is acknowledged to a sender has been kept first.

Does not belong here: the protocols' bytes (wire/forward.py, wire/syslog.py), container log files (collector.py).
"""
