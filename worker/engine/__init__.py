"""sauscan's engine: a plain library that finds, proves and removes the hidden triggers of a checkpoint.

    from worker import engine
    report = engine.run(engine.ScanRequest(Path("model.safetensors")), Path("out"))

It knows of no web, no queue and no database; progress leaves it through a callable.
"""

from worker.engine.checkpoint import Checkpoint, CheckpointError, UnsupportedCheckpoint, inspect, load, save
from worker.engine.confirm import confirm
from worker.engine.confirmation import Confirmation, Confirmations
from worker.engine.evaluation import Evaluation, evaluate
from worker.engine.funnel import Search, search
from worker.engine.pipeline import run
from worker.engine.report import Report
from worker.engine.types import Progress, ScanRequest, Trigger
from worker.engine.unlearn.sau import sau as cleanse

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Confirmation",
    "Confirmations",
    "Evaluation",
    "Progress",
    "Report",
    "ScanRequest",
    "Search",
    "Trigger",
    "UnsupportedCheckpoint",
    "cleanse",
    "confirm",
    "evaluate",
    "inspect",
    "load",
    "run",
    "save",
    "search",
]
