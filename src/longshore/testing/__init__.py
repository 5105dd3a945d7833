"""The pytest plugin: an API server of its own a test."""
