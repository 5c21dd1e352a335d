"""A policy as a third party writes it: a few blocks train at a time, drawn anew every few steps."""

from lighter_freezers.engine import Action, ActionResult, EngineCallback, Terms, parameters_of_blocks


class DrawnBlocks(EngineCallback):
    """Train `num_blocks` blocks at a time, drawn anew every `every_n_steps`; all else trains as before."""

    def __init__(self, num_blocks: int = 2, every_n_steps: int = 20, seed: int = 0) -> None:
        super().__init__()
        self.arguments = (num_blocks, every_n_steps, seed)

    def actions(self):
        return [_Draw(*self.arguments)]


class _Draw(Action):
    title, kind, terms = "DrawnBlocks", "drawn blocks", Terms(optimizer_state="free")

    def __init__(self, num_blocks: int, every_n_steps: int, seed: int) -> None:
        super().__init__()
        self.num_blocks, self.every_n_steps, self.seed = num_blocks, every_n_steps, seed
        self.window = -1

    def setup(self, trainer, model, stage):
        self.blocks = {title: self.new_hold(block) for title, block in parameters_of_blocks(model).items()}

    def next_step(self, moment):
        return (moment.optimizer_step // self.every_n_steps + 1) * self.every_n_steps

    def is_due(self, moment):
        return moment.optimizer_step // self.every_n_steps != self.window

    def apply(self, context):
        self.window = context.moment.optimizer_step // self.every_n_steps
        drawn = context.random(self.seed, self.window).sample(list(self.blocks), self.num_blocks)
        for title, hold in self.blocks.items():
            hold.let_go() if title in drawn else hold.take()
        return ActionResult(notes=(f"DrawnBlocks trains blocks {', '.join(drawn)}",))

    resume = apply
