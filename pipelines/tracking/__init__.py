"""The tracking store: MLflow's experiments, runs, logged models and their artifacts.

Used by the engine, the stages, the registry and the reports; nothing else reads or writes MLflow's
runs. A restarted command finds its runs by kind and key, never by name or by the order of events.
"""
