"""Three policies as third parties write them: by what is measured, with freed state, and by rules alone."""

from lighter_freezers.engine import (
    Action,
    ActionResult,
    EngineCallback,
    FreezeRule,
    LearningRateRequest,
    MetricBelow,
    ParameterSelector,
    Schedule,
    Terms,
    parameters_of_blocks,
)


class SteepestBlocks(EngineCallback):
    """Train the blocks with the largest gradients; one more at a time where the loss has not fallen."""

    def __init__(self, every_n_steps: int = 20) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps

    def actions(self):
        return [_Steepest(self.every_n_steps)]


class _Steepest(Action):
    title, kind, terms = "SteepestBlocks", "steepest blocks", Terms(optimizer_state="reset")
    depends_on_data = wants_gradients = wants_loss = True

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self.every_n_steps, self.window, self.number = every_n_steps, 0, 1
        self.training, self.before, self.sums = [], None, {}

    def setup(self, trainer, model, stage):
        self.blocks = {title: self.new_hold(block) for title, block in parameters_of_blocks(model).items()}

    def resume(self, context):
        self.training = self.training or list(self.blocks)  # all, until they are measured
        self.follow()

    def next_step(self, moment):
        return (moment.optimizer_step // self.every_n_steps + 1) * self.every_n_steps

    def is_due(self, moment):
        return moment.optimizer_step // self.every_n_steps != self.window

    def before_optimizer_step(self, context, optimizer):
        for title in self.training:
            norm = context.gradient_norm(self.blocks[title].parameters, optimizer)
            if norm is not None:
                self.sums[title] = self.sums.get(title, 0) + norm

    def apply(self, context):
        self.window = context.moment.optimizer_step // self.every_n_steps
        loss = float(context.mean_over_ranks(context.loss))
        self.number += self.before is not None and loss >= self.before
        self.before = loss
        steep = {title: float(context.mean_over_ranks(each)) for title, each in self.sums.items()}
        waiting = [title for title in self.blocks if title not in steep]
        ranked = waiting + sorted(steep, key=steep.get, reverse=True)
        self.training, self.sums = ranked[: self.number], {}
        self.follow()
        return ActionResult(notes=(f"SteepestBlocks trains {', '.join(self.training)} at loss {loss:.3g}",))

    def follow(self):
        for title, hold in self.blocks.items():
            hold.let_go() if title in self.training else hold.take()

    def state(self):
        kept = {name: getattr(self, name) for name in ("window", "number", "training", "before")}
        return {**kept, "sums": {title: float(each) for title, each in self.sums.items()}}

    def remember(self, state):
        for name, value in state.items():
            if hasattr(self, name) and name not in ("kind", "title"):
                setattr(self, name, value)


class OneAtATime(EngineCallback):
    """Train one block after the other, from the top down; the others leave the optimizer meanwhile."""

    def __init__(self, every_n_steps: int = 20) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps

    def actions(self):
        return [_InTurn(self.every_n_steps)]


class _InTurn(Action):
    title, kind = "OneAtATime", "one at a time"
    terms = Terms(optimizer_state="free", cut_gradient="never")

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self.every_n_steps, self.turn = every_n_steps, -1

    def setup(self, trainer, model, stage):
        self.blocks = [self.new_hold(block) for block in parameters_of_blocks(model).values()]

    def next_step(self, moment):
        return (moment.optimizer_step // self.every_n_steps + 1) * self.every_n_steps

    def is_due(self, moment):
        return moment.optimizer_step // self.every_n_steps != self.turn

    def apply(self, context):
        self.turn = context.moment.optimizer_step // self.every_n_steps
        chosen = len(self.blocks) - 1 - self.turn % len(self.blocks)
        for index, hold in enumerate(self.blocks):
            hold.let_go() if index == chosen else hold.take()
        return ActionResult(notes=(f"OneAtATime trains block {chosen}",))

    resume = apply


class TopDown(EngineCallback):
    """Thaw a block every few steps, the last one first, each at half the rate of the one above it."""

    def __init__(self, every_n_steps: int = 20, enough: float = 0.01) -> None:
        super().__init__()
        self.every_n_steps, self.enough = every_n_steps, enough

    def rules_for(self, model):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        blocks = list(parameters_of_blocks(model).values())
        return [
            FreezeRule(
                f"TopDown {depth}",
                ParameterSelector(names=tuple(names[id(parameter)] for parameter in block)),
                Schedule(until_step=depth * self.every_n_steps),
                trigger=MetricBelow("train/loss", self.enough),
                learning_rate=LearningRateRequest(factor=0.5**depth),
            )
            for depth, block in enumerate(reversed(blocks))
        ]
