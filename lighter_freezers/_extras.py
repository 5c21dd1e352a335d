"""Says which extra installs a package that is missing.

A plain install has what the callbacks and TensorBoard need; the other packages belong to the extras of
`pyproject.toml`, and each is imported where it is first used.
"""

import sys
from importlib.util import find_spec

__all__ = ["missing_package", "require"]

_EXTRAS = {  # package as it is imported -> its extra
    "lighter": "lighter",
    "sparkwheel": "lighter",
    "peft": "lora",
    "matplotlib": "plots",
    "datasets": "experiments",
    "huggingface_hub": "experiments",
    "nltk": "experiments",
    "pyarrow": "experiments",
    "rouge_score": "experiments",
    "sacrebleu": "experiments",
    "safetensors": "experiments",
    "tokenizers": "experiments",
    "transformers": "experiments",
}
_LAST_PYTHON_OF_LIGHTER = (3, 12)  # it needs numpy < 2, which has no build for later ones


def require(user: str, *packages: str) -> None:
    """Check that packages of an extra are installed, before work is done in vain.

    Args:
        user: What needs them, as its caller knows it.
        packages: As they are imported.

    Raises:
        ImportError: One is missing; the message has the command that installs it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ImportError(_message(user, package))


def missing_package(error: ModuleNotFoundError, user: str) -> ImportError:
    """The error to raise instead of one about a package of an extra; any other as it is."""
    package = (error.name or "").partition(".")[0]
    return ImportError(_message(user, package)) if package in _EXTRAS else error


def _message(user: str, package: str) -> str:
    extra = _EXTRAS[package]
    if extra == "lighter" and sys.version_info[:2] > _LAST_PYTHON_OF_LIGHTER:
        return (
            f"{user} needs lighter, which cannot be installed on Python {sys.version_info[0]}."
            f"{sys.version_info[1]}: it requires numpy below 2. Use Python 3.10 to 3.12 for configs in YAML; "
            "a Trainer in Python works on this one."
        )
    return f'{user} needs {package}, which is not installed: pip install "lighter-freezers[{extra}]".'
