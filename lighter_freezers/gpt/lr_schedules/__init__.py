"""Learning-rate schedules for transfer: they answer for an iteration, and drive an optimizer's groups."""

from lighter_freezers.gpt.lr_schedules.adaptive import AdaptiveScheduler
from lighter_freezers.gpt.lr_schedules.groups import trunk_and_head_groups
from lighter_freezers.gpt.lr_schedules.transfer import TransferLearningScheduler
from lighter_freezers.gpt.lr_schedules.warmup_only import WarmupOnlyScheduler

__all__ = ["AdaptiveScheduler", "TransferLearningScheduler", "WarmupOnlyScheduler", "trunk_and_head_groups"]
