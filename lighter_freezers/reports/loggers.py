"""How numbers, texts and pictures reach whatever loggers a Trainer has. Knows nothing of freezing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["tensorboard_folders", "write_image", "write_layout", "write_metrics", "write_text"]

_INDEX = re.compile(r"\\\.\d+(?=\\\.|$)")  # ".3" in an escaped name

Loggers = Sequence[Any]  # of either Lightning namespace, or of the user's making


def _is_tensorboard(logger: Any) -> bool:
    """TensorBoardLogger of either namespace, whichever SummaryWriter it uses, without an import of one."""
    return callable(getattr(logger.experiment, "add_custom_scalars", None))


def tensorboard_folders(loggers: Loggers) -> list[str]:
    """Where TensorBoard finds the runs that these loggers write."""
    return [str(logger.root_dir) for logger in loggers if _is_tensorboard(logger) and logger.root_dir]


def write_metrics(loggers: Loggers, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)


def write_text(loggers: Loggers, key: str, markdown: str, step: int) -> None:
    """Log a Markdown text to TensorBoard; other loggers have no place for one."""
    for logger in loggers:
        if _is_tensorboard(logger):
            logger.experiment.add_text(key, markdown, step)


def write_layout(loggers: Loggers, category: str, charts: Mapping[str, Iterable[str]]) -> None:
    """Group scalars into charts on TensorBoard's custom-scalars tab.

    Args:
        loggers: Those of the Trainer.
        category: The heading of the charts.
        charts: Title of a chart to the keys in it; "attn.0" stands for every index.
    """
    layout = {title: ["Multiline", [_pattern(keys)]] for title, keys in charts.items()}
    for logger in loggers:
        if _is_tensorboard(logger):
            logger.experiment.add_custom_scalars({category: layout})


def _pattern(keys: Iterable[str]) -> str:
    """One regular expression for a chart: the tab sends a request for each, and matches from the start."""
    stems = dict.fromkeys(_INDEX.sub(r"\\.\\d+", re.escape(key)) for key in keys)
    return f"(.*-)?({'|'.join(stems)})$"  # a logger's prefix ends in "-"


def write_image(loggers: Loggers, key: str, image: "Image", step: int) -> None:
    """Log a picture to every logger that shows one, and as a PNG into the folder of every other."""
    for logger in loggers:
        if _is_tensorboard(logger):
            import numpy as np

            logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")
        elif callable(getattr(logger, "log_image", None)):
            logger.log_image(key=key, images=[image], step=step)
        else:
            _write_png(logger, key, image)


def _write_png(logger: Any, key: str, image: "Image") -> None:
    folder = getattr(logger, "log_dir", None) or logger.save_dir
    if folder is None:  # a logger that keeps no files here
        return
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    files, path = url_to_fs(str(folder))
    files.makedirs(path, exist_ok=True)
    with files.open(f"{path}/{key.replace('/', '_')}.png", "wb") as file:
        image.save(file, "PNG")
