"""Kinds of stage: what each trains, on which rows, with which losses. `base.py` says what a new kind takes."""

from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.tasks.base import register
from mclip_kit.tasks.translation import TranslationTask
from mclip_kit.tasks.triangle import TriangleTask

register(TriangleStage, TriangleTask)
register(TranslationStage, TranslationTask)
