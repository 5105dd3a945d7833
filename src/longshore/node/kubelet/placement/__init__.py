"""Which CPUs, memory and devices of a machine a container gets: the CPU, memory and topology managers.

Door: `Placement`, asked before a pod's first sandbox. The choices themselves (assignment, hints, memory) are pure.
"""
