"""OCI runtime and monitor: bundles, conmon, runc, exec, exit statuses, log files, cgroup figures.

Door: the OCI runtime command line and bundle. Shared by engine/containers and engine/cri; knows neither.
"""
