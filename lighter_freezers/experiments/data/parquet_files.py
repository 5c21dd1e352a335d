"""The rows of a Parquet file, by pyarrow, which is imported here only."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["parquet_rows"]


def parquet_rows(file: Path) -> Iterator[dict[str, object]]:
    """The rows of a Parquet file, a block at a time: lists and nested fields as Python's lists and dicts.

    Raises:
        RuntimeError: pyarrow is not installed.
        ValueError: It is no Parquet file.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise RuntimeError(
            f"{file} is a Parquet file, and pyarrow, which reads it, cannot be imported: {error}. Get it: "
            'pip install "lighter-freezers[experiments]". A .jsonl or .csv file needs nothing.'
        ) from error
    try:
        with ParquetFile(file) as opened:
            for batch in opened.iter_batches():
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}.") from error
