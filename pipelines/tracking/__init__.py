"""The tracking store: MLflow's experiments, runs, logged models and their artifacts.

Used by the engine, the stages, the registry and the reports; nothing else talks to MLflow's runs. A
run is found by its kind and key, never by its name or by the order of events, so that a command
that was killed finds its own work again.
"""
