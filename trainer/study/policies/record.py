"""A finished seed in one small file: no texts, only what was measured."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.demo.outcome import Point
from trainer.study.policies.config import PolicyStudySettings


@dataclass(frozen=True)
class Course:
    """One policy: its arm, its β, and every measurement of it on the held-out prompts."""

    arm: str
    beta: float
    points: list[Point]


@dataclass(frozen=True)
class SeedRecord:
    """One replicate.

    ``standards[arm]``: mean and standard deviation of the proxy on samples of the SFT policy.
    ``accuracy[arm][cell]``: of the reward models. ``ran``: where, for how many seconds,
    and the version of the gold model.
    """

    identity: dict[str, Any]
    standards: dict[str, tuple[float, float]]
    accuracy: dict[str, dict[str, float | None]]
    courses: list[Course]
    ran: dict[str, Any]

    def write(self, path: Path) -> None:
        atomic.write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, identity: dict[str, Any]) -> "SeedRecord":
        """Read a record.

        Raises:
            UsageError: it is of other settings; names what differs.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in identity if content["identity"].get(key) != identity[key]]:
            raise UsageError(
                f"{path}: the record of a seed with another {', '.join(changed)}; remove it, or "
                "set records to another directory"
            )
        content["standards"] = {arm: tuple(two) for arm, two in content["standards"].items()}
        content["courses"] = [
            Course(one["arm"], one["beta"], [Point(**point) for point in one["points"]])
            for one in content["courses"]
        ]
        return cls(**content)

    def course(self, arm: str, beta: float) -> Course:
        return next(one for one in self.courses if (one.arm, one.beta) == (arm, beta))


def identity_of(settings: PolicyStudySettings, seed: int) -> dict[str, Any]:
    """What makes two replicates the same."""
    content = settings.model_dump(mode="json", by_alias=True)
    names = ["arms", "betas", "steps", "every", "standard_samples", "backend"]
    if settings.text is None:
        return {"seed": seed} | {name: content[name] for name in (*names, "scale")}
    places = ("source", "policy", "gold", "backbone")
    text = content["text"] | {name: Path(content["text"][name] or "").name for name in places}
    return {"seed": seed, "text": text} | {name: content[name] for name in names}


def record_path(settings: PolicyStudySettings, seed: int) -> Path:
    return (settings.records or settings.output_dir / "records") / f"seed-{seed}.json"
