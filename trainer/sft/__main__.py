"""``python -m trainer.sft --config FILE``: conversations in, a policy out."""

import sys

from reward_model.command import run
from trainer.sft.config import SftSettings


def _train(settings: SftSettings) -> None:
    # Imported here so that wrong settings are reported before torch and TRL have loaded.
    from trainer.sft.train import train

    print(f"policy written to {train(settings)}")


def main() -> int:
    return run(SftSettings, _train, prog="python -m trainer.sft")


if __name__ == "__main__":
    sys.exit(main())
