"""Volumes of pods: made on the node before containers start, kept up to date, taken away after them.

Door: `VolumeManager`. Does not belong here: which containers mount them where (podspec).
"""

from longshore.node.kubelet.volumes.manager import MountedVolume, VolumeError, VolumeManager

__all__ = ["MountedVolume", "VolumeError", "VolumeManager"]
