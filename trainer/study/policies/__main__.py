"""``python -m trainer.study.policies --config FILE``: does a better proxy make a better policy?

Everything is in ``output_dir``: a directory per seed with the demo's stages and an RLOO run per arm
and β, ``results.json`` and ``report.html``, both written anew after every seed from the second on.
The same command goes on where it was stopped.
"""

import sys

from reward_model.command import run
from trainer.study.policies.config import PolicyStudySettings


def _command(settings: PolicyStudySettings) -> None:
    # Imported here so that --help and a wrong key answer at once.
    from trainer.study.policies.page import write_page
    from trainer.study.policies.results import analyse, write_results
    from trainer.study.policies.runs import run_all

    if not settings.analyse_only:
        for finished, _ in enumerate(run_all(settings), start=1):
            print(f"{finished} of {len(settings.seeds)} seeds")
            if finished > 1:
                write_results(settings.output_dir, found := analyse(settings))
                write_page(settings, found)
        return
    write_results(settings.output_dir, found := analyse(settings))
    write_page(settings, found)
    print(f"{settings.output_dir}: {len(found.records)} seeds")


def main() -> int:
    return run(PolicyStudySettings, _command, prog="python -m trainer.study.policies")


if __name__ == "__main__":
    sys.exit(main())
