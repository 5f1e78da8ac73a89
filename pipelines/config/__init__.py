"""The machinery of configuration: YAML text, composition, overrides, sections, problems, schema.

It knows no section; every component defines its own, and pipelines/experiment.py assembles them.
"""
