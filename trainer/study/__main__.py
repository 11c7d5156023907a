"""``python -m trainer.study --config FILE``: losses compared over seeds, prompts and lineages.

Everything is in ``output_dir``: ``cells/`` (what was trained on and measured), ``runs/`` (a run
directory of ``trainer.reward`` per arm and replicate), ``results.json`` and ``report.html``, both
written anew whenever a replicate has its primary arms, and again when it has the others. The same
command goes on where it was stopped, and looks once at what is there.
``--pilot '[2e-5, 5e-5]'`` compares learning rates on the dev set instead: ``pilot.json``.
"""

import sys

from reward_model.command import run
from trainer.study.config import StudySettings


def _command(settings: StudySettings) -> None:
    # Imported here so that --help and a wrong key answer at once.
    from transformers.utils import logging

    from trainer.study.page import write_page
    from trainer.study.pilot import try_rates, write_trials
    from trainer.study.results import analyse, write_results
    from trainer.study.runs import finished, run_all

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if settings.pilot is not None:
        trials = []
        for trial in try_rates(settings):
            trials.append(trial)
            write_trials(settings, trials)
            (step, best), last = trial.best, trial.taus[max(trial.taus)]
            print(f"lr {trial.lr:g}: dev τ-b {best:.3f} at step {step}, {last:.3f} at the last")
        return
    if not settings.analyse_only:
        complete: set[int] = set()
        analysed: dict[str, int] = {}
        for number in run_all(settings):
            complete.add(number)
            if len(complete) > 1 and (there := finished(settings)) != analysed:
                analysed = there
                write_results(settings, found := analyse(settings))
                write_page(settings, found)
        return
    write_results(settings, found := analyse(settings))
    write_page(settings, found)
    print(f"{settings.output_dir}: {len(found.replicates)} replicates")


def main() -> int:
    return run(StudySettings, _command, prog="python -m trainer.study")


if __name__ == "__main__":
    sys.exit(main())
