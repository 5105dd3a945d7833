"""Docker volumes: the local driver.

Door: `VolumeService`.
"""
