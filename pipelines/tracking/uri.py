"""Where the tracking store is."""

import os
from pathlib import Path


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the current folder, where a bare `mlflow ui` looks."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri
