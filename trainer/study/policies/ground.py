"""What the policies of a seed stand on, whatever world they are of."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.demo.runner import StageRunner
from trainer.demo.stages import Stage


@dataclass(frozen=True)
class Ground:
    """Files of one seed.

    ``rewards``: a run of every arm, by name. ``evaluation``: likewise. ``rloo``: what all RLOO runs
    are told alike. ``after``: the stages that they build on.
    """

    rewards: Path
    evaluation: Path
    rloo: Mapping[str, Any]
    after: tuple[Stage, ...]


class World(Protocol):
    """Makes the ground of one seed, stage by stage."""

    @property
    def runner(self) -> StageRunner:
        """Runs the stages, in the seed's directory."""

    def gold(self) -> AbstractContextManager[str]:
        """Serve the gold reward; yields its URL."""

    def ground(self, gold_url: str) -> Ground:
        """Run the stages that are not done yet."""
