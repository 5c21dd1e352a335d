"""The readme and the URLs of a distribution: its links lead to the repository that builds it.

A release builds where `GITHUB_REPOSITORY` is set, as in `.github/workflows/release.yml`. Elsewhere no address
is known, and the links of the readme stay relative.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Sets `readme` and `urls`, which pyproject.toml declares dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in both fields."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("GITHUB_REPOSITORY")
        metadata["urls"] = {}
        if repository:
            home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
            metadata["urls"] = {
                "Homepage": home,
                "Changelog": f"{home}/blob/main/CHANGELOG.md",
                "Issues": f"{home}/issues",
            }
            text = LINK.sub(
                lambda link: f"{link[1]}{link[2]}({home}/{'raw' if link[1] else 'blob'}/main/{link[3]})", text
            )
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
