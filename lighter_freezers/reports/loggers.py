"""Writes numbers, texts and images to all loggers of a Trainer. Independent of freezing."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard
from weakref import WeakSet

from lighter_freezers.engine.trainer_like import LoggerLike
from lighter_freezers.reports.whole_files import write_png
from lighter_freezers.selection.names import loggable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "tensorboard_folders",
    "tensorboards",
    "with_late_epoch",
    "write_image",
    "write_layout",
    "write_metrics",
    "write_text",
]

_TORCH_WRITER = "torch.utils.tensorboard.writer"
_INDEX = re.compile(r"\\\.\d+(?=\\\.|$)")  # ".3" in an escaped name

Loggers = Sequence[LoggerLike]
_FAILED: WeakSet[LoggerLike] = WeakSet()  # those that could not write; each is told of once


class _TensorBoardLike(LoggerLike, Protocol):
    experiment: Any  # a SummaryWriter, of torch or of another package
    LOGGER_JOIN_CHAR: str  # between its prefix and a key


def _is_tensorboard(logger: LoggerLike) -> TypeGuard[_TensorBoardLike]:
    """Whether it is a TensorBoardLogger of either namespace, with any SummaryWriter; imports neither."""
    return callable(getattr(getattr(logger, "experiment", None), "add_custom_scalars", None))


def tensorboard_folders(loggers: Loggers) -> list[str]:
    """The folders in which TensorBoard finds the runs of these loggers."""
    return [str(logger.root_dir) for logger in tensorboards(loggers) if logger.root_dir]


def tensorboards(loggers: Loggers) -> "list[_TensorBoardLike]":
    """Those that write for TensorBoard."""
    return [logger for logger in loggers if _is_tensorboard(logger)]


def with_late_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same numbers, so that cards in the order of their names begin with what matters.

    `epoch`, which Lightning adds to all it logs, gets a name that sorts late; the -1 that it logs as
    `hp_metric`, where there is no such metric, is left out.
    """
    named = {"trainer/epoch" if key == "epoch" else key: value for key, value in metrics.items()}
    if named.get("hp_metric") == -1:
        del named["hp_metric"]
    return named


def write_metrics(loggers: Loggers, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger; to Lightning's TensorBoardLogger in one event, not in one for each."""
    named = {loggable(key): value for key, value in metrics.items()} if loggers else {}
    for logger in loggers if named else ():
        with _harmless(logger):
            _write_metrics(logger, named, step)


def _write_metrics(logger: LoggerLike, metrics: Mapping[str, float], step: int) -> None:
    if not (_is_tensorboard(logger) and _is_lightnings(logger)):
        logger.log_metrics(dict(metrics), step=step)
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    prefix = getattr(logger, "_prefix", "")  # Lightning has no public name for it
    start = f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""
    points = [Summary.Value(tag=start + key, simple_value=value) for key, value in metrics.items()]
    logger.experiment.file_writer.add_summary(Summary(value=points), step)


@contextmanager
def _harmless(logger: LoggerLike) -> Iterator[None]:
    """A logger that cannot write, as on a full disk or without its server, is one warning."""
    try:
        yield
    except Exception as error:  # of any logger's client
        if logger not in _FAILED:
            _FAILED.add(logger)
            loss = "These reports are missing there, which does not end the run by itself."
            warnings.warn(f"{type(logger).__name__} cannot write: {error}. {loss}", stacklevel=4)


def _is_lightnings(logger: "_TensorBoardLike") -> bool:
    """Whether it is no class of the user's, which may rename keys, and writes with torch's SummaryWriter."""
    file = getattr(logger.experiment, "file_writer", None)
    return type(logger).__name__ == "TensorBoardLogger" and type(file).__module__ == _TORCH_WRITER


def write_text(
    loggers: Loggers, key: str, markdown: str, step: int, table: Sequence[Sequence[str]] | None = None
) -> None:
    """Log a Markdown text: in TensorBoard, Weights & Biases, MLflow and Comet; others show none.

    Args:
        loggers: Those of the Trainer.
        key: Its name.
        markdown: The text.
        step: Optimizer steps done.
        table: The same as rows, the first of them the headings, for loggers that have tables.
    """
    for logger in loggers:
        with _harmless(logger):
            _write_text(logger, key, markdown, step, table or (("text",), (markdown,)))


def _write_text(
    logger: LoggerLike, key: str, markdown: str, step: int, table: Sequence[Sequence[str]]
) -> None:
    client: Any = getattr(logger, "experiment", None)  # of any package
    if _is_tensorboard(logger):
        logger.experiment.add_text(key, markdown, step)
    elif callable(log_table := getattr(logger, "log_table", None)):
        heading, *rows = table
        log_table(key=key, columns=list(heading), data=[list(row) for row in rows], step=step)
    elif callable(getattr(client, "log_text", None)):
        if run_id := getattr(logger, "run_id", None):
            client.log_text(run_id, markdown, f"{key}/step_{step}.md")
        else:
            client.log_text(markdown, step=step, metadata={"key": key})


def write_layout(loggers: Loggers, category: str, charts: Mapping[str, Iterable[str]]) -> None:
    """Group scalars into charts on TensorBoard's custom-scalars tab.

    Args:
        loggers: Those of the Trainer.
        category: The heading of the charts.
        charts: Title of a chart to the keys in it; "attn.0" stands for every index.
    """
    layout = {title: ["Multiline", [_pattern(keys)]] for title, keys in charts.items()}
    for logger in tensorboards(loggers):
        with _harmless(logger):
            logger.experiment.add_custom_scalars({category: layout})


def _pattern(keys: Iterable[str]) -> str:
    """One regular expression for a chart: the tab sends one request for each, and matches from the start."""
    stems = dict.fromkeys(_INDEX.sub(r"\\.\\d+", re.escape(loggable(key))) for key in keys)
    return f"(.*-)?({'|'.join(stems)})$"  # a logger's prefix ends in "-"


def write_image(loggers: Loggers, key: str, image: "Image", step: int) -> None:
    """Log an image to every logger that shows one, and write a PNG into the folder of every other."""
    for logger in loggers:
        client: Any = getattr(logger, "experiment", None)  # of any package
        if _is_tensorboard(logger):
            import numpy as np

            logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")
        elif callable(log_image := getattr(logger, "log_image", None)):
            log_image(key=key, images=[image], step=step)
        elif not callable(getattr(client, "log_image", None)):
            _write_png(logger, key, image)
        elif run_id := getattr(logger, "run_id", None):
            client.log_image(run_id, image, f"{key}.png")
        else:
            client.log_image(image, name=key, step=step)


def _write_png(logger: LoggerLike, key: str, image: "Image") -> None:
    folder = getattr(logger, "log_dir", None) or logger.save_dir
    if folder is None:  # a logger without a local folder
        return
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    files, path = url_to_fs(f"{folder}/{key.replace('/', '_')}.png")
    if isinstance(files, LocalFileSystem):
        write_png(path, image)
        return
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    with files.open(path, "wb") as file:
        image.save(file, "PNG")
