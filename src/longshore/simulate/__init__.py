"""Simulated nodes and what-if runs."""
