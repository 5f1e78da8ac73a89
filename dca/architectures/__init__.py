"""Architectures of language models, registered by name; a module is imported when it is chosen.

Used by dca.model through the registry.
"""
