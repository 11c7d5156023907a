"""The demo's town as the world of a study."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.demo.cells import cell_path
from trainer.demo.config import DemoSettings
from trainer.demo.demo import Demo
from trainer.demo.gold_server import GoldServer
from trainer.demo.plan import rloo_config
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.ground import Ground


class Town:
    """The demo's stages with the study's arms."""

    def __init__(self, settings: PolicyStudySettings, seed: int) -> None:
        self.seed = seed
        losses = {
            name: loss.model_dump(by_alias=True, exclude_none=True)
            for name, loss in settings.arms.items()
        }
        self.runner = Demo(
            DemoSettings(
                scale=settings.scale,
                seed=seed,
                output_dir=settings.output_dir / f"seed-{seed}",
                backend=settings.backend,
            ),
            losses,
        )

    @contextmanager
    def gold(self) -> Iterator[str]:
        with GoldServer() as server:
            yield server.url

    def ground(self, gold_url: str) -> Ground:
        demo = self.runner
        world = demo.world()
        sft = demo.sft(world)
        rewards = demo.rewards(world, sft)
        evaluation = demo.evaluation(world, rewards)
        rloo = rloo_config(
            demo.scale,
            self.seed,
            "",
            policy=sft.directory / "model",
            prompts=cell_path(world.directory, "policy_prompts"),
            heldout=cell_path(world.directory, "heldout_prompts"),
            output=demo.root,
            backend=demo.settings.backend,
            url="",
            gold_url=gold_url,
            mean=0.0,
            std=1.0,
        )
        after = (world, sft, rewards)
        return Ground(rewards.directory, evaluation.directory, rloo, after)
