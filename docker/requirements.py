"""Print the requirements of the extras named on the command line, from pyproject.toml.

So that an image installs them in a layer of their own, before the source is copied in.
"""

import sys
import tomllib
from pathlib import Path


def requirements(extras: list[str]) -> list[str]:
    text = Path(__file__).with_name("pyproject.toml").read_text()
    parsed = tomllib.loads(text)
    found = [*parsed["build-system"]["requires"], *parsed["project"]["dependencies"]]
    for extra in extras:
        found += parsed["project"]["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
