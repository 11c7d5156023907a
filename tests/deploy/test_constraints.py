"""The constraints can be audited: every package has one version (``make audit``)."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-vllm.txt"])
def test_every_package_has_one_version(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
    requirements = [Requirement(line) for line in lines]
    assert len(requirements) > 50
    for requirement in requirements:
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), requirement
    names = [requirement.name.lower().replace("_", "-") for requirement in requirements]
    assert len(set(names)) == len(names)


def test_the_audit_reads_both() -> None:
    makefile = (ROOT / "Makefile").read_text()
    audited = re.findall(r"pip-audit --strict .* -r (\S+)", makefile)
    assert audited == ["constraints.txt", "constraints-vllm.txt"]
