"""The search of an experiment: Optuna proposes trials, Ray Tune runs them, MLflow records them.

Its sections are part of the experiment; the stages search and select run it and read its result,
and the cost estimate simulates it.

The tracking store is the single source of truth: a trial's run is created, with its parameters,
before the trial starts, and a search that was killed is rebuilt from these runs. `run` puts the
parts together.
"""
