"""The settings of ``python -m service.offline``."""

from pathlib import Path

from pydantic_settings import CliPositionalArg

from reward_model.encode import Truncation
from service.settings import ModelSettings, ScoringSettings, ServiceSettings


class OfflineSettings(ScoringSettings):
    """Score the items of a JSON Lines file with one reward model."""

    input: CliPositionalArg[Path]
    """JSON Lines, one item of POST /score per line."""
    output: CliPositionalArg[Path]
    """JSON Lines, one result per line of the input."""
    model: str
    """[NAME=]DIR of a reward model checkpoint or adapter ([NAME=]DIR@BASE where its base is not
    where it says)."""
    truncation: Truncation = "error"
    """What happens to an item that is too long: an error in its place, or cut on one side."""
    normalize: bool = False
    """(score − mean)/std of the checkpoint's own statistics, where it has them."""

    @property
    def served(self) -> ModelSettings:
        return ModelSettings.model_validate(self.model)

    def as_service(self) -> ServiceSettings:
        """The server's settings that give the same scores, with room for every line in flight."""
        shared = {name: getattr(self, name) for name in ScoringSettings.model_fields}
        return ServiceSettings(model=(self.served,), max_queue_tokens=2**62, **shared)
