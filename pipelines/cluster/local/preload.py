"""Loads what trials need in the worker processes that Ray starts together with a cluster of this
machine, while the driver still prepares the first trials.

Ray imports this module in each worker (`PRELOADED` in pipelines.compat.ray), and reads nothing else
of it: therefore it acts as it is imported. Workers that are started later are for actors of Ray's
own too, which need neither PyTorch nor Tune.
"""

import os
import time

import psutil

START_SECONDS = 30
"""Of the parent's life in which a worker counts as started together with the cluster."""

if time.time() - psutil.Process(os.getppid()).create_time() < START_SECONDS:
    import pipelines.cluster.trial  # noqa: F401
