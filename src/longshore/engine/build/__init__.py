"""Dockerfile to graph to layers, with a content-addressed cache.

Door: `Builder`. Does not belong here: HTTP (dockerapi carries it).
"""
