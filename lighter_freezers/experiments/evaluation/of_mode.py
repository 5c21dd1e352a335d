"""Which figures belong to which mode of the GPT."""

from lighter_freezers.experiments.evaluation.mode_figures import Figures
from lighter_freezers.experiments.evaluation.score_figures import ScoreFigures
from lighter_freezers.experiments.evaluation.text_likelihood import TextLikelihood
from lighter_freezers.experiments.evaluation.token_figures import TokenFigures
from lighter_freezers.gpt.config import GPTConfig, ModelMode

__all__ = ["figures_of"]


def figures_of(config: GPTConfig) -> Figures:
    """The figures of a GPT's mode, without any batch yet."""
    if config.mode == ModelMode.LANGUAGE_MODEL:
        return TextLikelihood(config.ignore_index)
    if config.mode == ModelMode.SEQUENCE_SCORER:
        return ScoreFigures()
    assert config.num_token_classes is not None
    return TokenFigures(config.num_token_classes, config.ignore_index, config.class_weights)
