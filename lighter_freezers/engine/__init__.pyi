# The public names for type checkers and editors; a test compares them with those of `__init__.py`.
from lighter_freezers.engine.actions import Action as Action
from lighter_freezers.engine.effects.learning_rates import (
    LearningRateRequest as LearningRateRequest,
    RateFactor as RateFactor,
)
from lighter_freezers.engine.engine import Engine as Engine, EngineCallback as EngineCallback
from lighter_freezers.engine.ledger import Hold as Hold
from lighter_freezers.engine.rules import FreezeRule as FreezeRule
from lighter_freezers.engine.run_shares import RunShares as RunShares
from lighter_freezers.engine.step_context import ActionResult as ActionResult, StepContext as StepContext
from lighter_freezers.engine.terms import Terms as Terms
from lighter_freezers.engine.transition import Transition as Transition
from lighter_freezers.engine.triggers import (
    LossOrWait as LossOrWait,
    MetricBelow as MetricBelow,
    Moment as Moment,
    Plateau as Plateau,
    Schedule as Schedule,
)
from lighter_freezers.selection.anatomy.block_modules import parameters_of_blocks as parameters_of_blocks
from lighter_freezers.selection.select import ParameterSelector as ParameterSelector
