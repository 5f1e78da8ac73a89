"""Loads what trials need in the worker processes that Ray starts together with a cluster of this
machine, one for each core, while the driver still prepares the first trials.

Ray imports this module in each worker (`PRELOADED` in pipelines.compat.ray), and reads nothing else
of it: therefore it acts as it is imported. Workers that are started later, for a job, are for
actors of Ray's own too, which need neither PyTorch nor Tune.
"""

from pipelines.compat.ray import has_no_job

if has_no_job():
    import pipelines.cluster.trial  # noqa: F401
