"""What a step measured, sample by sample."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields


@dataclass
class StepStatistics:
    """Per-sample values of a step, collected over its parts."""

    loss: float = 0.0
    kl_loss: float = 0.0
    kl: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    truncated: list[float] = field(default_factory=list)
    sampler_difference: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    computed_tokens: int = 0

    def summary(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "loss/kl": self.kl_loss,
            "kl": statistics.fmean(self.kl),
            "kl_per_token": sum(self.kl) / max(1, self.tokens),
            "advantage_std": statistics.pstdev(self.advantages),
            "ratio_mean": statistics.fmean(self.ratios),
            "ratio_max": max(self.ratios),
            "ratio_min": min(self.ratios),
            "truncated_share": statistics.fmean(self.truncated),
            "sampler_difference": self.sampler_difference / max(1, self.tokens),
            "entropy": self.entropy / max(1, self.tokens),
            "response_tokens": float(self.tokens),
            "computed_tokens": float(self.computed_tokens),
        }


def added_up(parts: Sequence[StepStatistics]) -> StepStatistics:
    """The statistics of several ranks as those of one: sums added, lists laid end to end."""
    total = StepStatistics()
    for part in parts:
        for one in fields(StepStatistics):
            setattr(total, one.name, getattr(total, one.name) + getattr(part, one.name))
    return total
