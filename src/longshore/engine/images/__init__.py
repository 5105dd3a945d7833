"""Content store, references, layers, pull, push, save, load.

Door: `ImageStore`. Does not belong here: running containers, Dockerfiles.
"""
