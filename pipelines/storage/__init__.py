"""Folders and files in storage: on this machine, or in an object store or mount every node sees.

Used by data, training, tracking, registry, engine, search and stages.
"""
