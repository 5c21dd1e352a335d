"""Learning-rate schedules for transfer: functions of the iteration that also set an optimizer's groups."""

from lighter_freezers.gpt.lr_schedules.adaptive import AdaptiveScheduler
from lighter_freezers.gpt.lr_schedules.groups import trunk_and_head_groups
from lighter_freezers.gpt.lr_schedules.transfer import TransferLearningScheduler
from lighter_freezers.gpt.lr_schedules.warmup_only import WarmupOnlyScheduler

__all__ = ["AdaptiveScheduler", "TransferLearningScheduler", "WarmupOnlyScheduler", "trunk_and_head_groups"]
