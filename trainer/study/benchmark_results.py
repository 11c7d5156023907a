"""The arms on the benchmarks, and every arm against the baseline there."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.study.benchmarks import Benchmarks, benchmark_digests, benchmarks_path
from trainer.study.comparison import Difference, paired
from trainer.study.config import StudySettings
from trainer.study.runs import record_path


@dataclass(frozen=True)
class BenchmarkResults:
    """``values[arm][name]`` has a number per replicate of ``replicates``: those of which the
    primary arms were measured; arms that were not measured in all of them are left out.
    ``differences[arm][name]``: from the baseline, uncorrected. ``counts``: pairs or items, and
    those without a score, the same in all runs but for ``train``."""

    replicates: list[int]
    values: dict[str, dict[str, list[float]]]
    differences: dict[str, dict[str, Difference]]
    counts: dict[str, int]


def benchmark_results(
    settings: StudySettings, numbers: Sequence[int], arms: Sequence[str]
) -> BenchmarkResults | None:
    """None where no replicate has been measured with the primary arms.

    Raises:
        UsageError: a run was measured on other files.
    """
    if settings.benchmarks is None:
        return None
    files = benchmark_digests(settings.benchmarks)
    measured: dict[int, dict[str, Benchmarks]] = {}
    for number in numbers:
        paths = {arm: benchmarks_path(record_path(settings, arm, number)) for arm in arms}
        if all(paths[arm].is_file() for arm in settings.primary_arms):
            measured[number] = {
                arm: Benchmarks.read(path, files) for arm, path in paths.items() if path.is_file()
            }
    if not measured:
        return None
    arms = [arm for arm in arms if all(arm in found for found in measured.values())]
    runs = [found[arm] for found in measured.values() for arm in arms]
    names = [name for name in runs[0].values if all(name in one.values for one in runs)]
    values = {
        arm: {name: [found[arm].values[name] for found in measured.values()] for name in names}
        for arm in arms
    }
    differences = {}
    if len(measured) > 1:
        for arm in arms:
            if arm != settings.baseline:
                differences[arm] = {
                    name: paired(_less(values[arm][name], values[settings.baseline][name]))
                    for name in names
                }
    return BenchmarkResults(list(measured), values, differences, runs[0].counts)


def _less(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]
