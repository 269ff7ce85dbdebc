"""The callbacks of every stage, in the order in which their hooks are called. A new one is a file and a line here."""

from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.callbacks.checkpointer import Checkpointer
from mclip_kit.train.callbacks.closed_form import ClosedForm
from mclip_kit.train.callbacks.collapse_monitor import CollapseMonitor
from mclip_kit.train.callbacks.early_stopping import EarlyStopping
from mclip_kit.train.callbacks.ema import Ema
from mclip_kit.train.callbacks.evaluate import Evaluate
from mclip_kit.train.callbacks.health import Health
from mclip_kit.train.callbacks.logger import Logger
from mclip_kit.train.callbacks.nonfinite_guard import NonfiniteGuard
from mclip_kit.train.callbacks.stage_summary import StageSummary
from mclip_kit.train.callbacks.start_weights import StartWeights
from mclip_kit.train.callbacks.wise_ft import WiseFt

CALLBACKS: list[type[Callback]] = [
    ClosedForm,  # before the start of the stage is evaluated
    StartWeights,
    NonfiniteGuard,  # a step that was skipped for good ends the run before anything else sees it
    Ema,
    CollapseMonitor,
    Logger,
    EarlyStopping,
    Evaluate,  # calls `after_evaluation` of all
    WiseFt,
    StageSummary,
    Health,
    Checkpointer,  # last: what the others do after a step or a stage is done again if the run is killed before it
]

__all__ = ["CALLBACKS", "Callback", "Progress"]
