"""The machinery of configuration: YAML text, composition of files, overrides, strict sections,
problems and the JSON schema.

It defines no section: every component defines its own with it, and pipelines/experiment
assembles them.
"""
