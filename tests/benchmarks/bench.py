"""`make bench`: the receiver against a bare Flask route, as ratios of one run.

All contenders are started on loopback and driven in turn, A B A B; README.md says what it means.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tests.benchmarks import breakdown, results, rows
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.load import BenchError, Load, body_template, find_program
from tests.benchmarks.results import Round

_RESULTS = Path(__file__).parent.parent.parent / "bench-results"


def main() -> int:
    """Run the benchmark; return the exit code, 1 when its figures would mean nothing."""
    options = _options()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        for program in ("wrk", *(["webhook"] if "hook" in options.rows else [])):
            find_program(program)
        with _directory(options.directory) as directory:
            _run(options, directory)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=_positive, default=5, help="loads of each contender (default: 5)")
    add("--seconds", type=_positive, default=4, help="of each load (default: 4)")
    add("--warm-up", type=int, default=2, help="seconds of a first load of each (default: 2)")
    add("--connections", type=_positive, default=16, help="at a time (default: 16)")
    add("--alerts", type=_positive, default=1, help="in a notification (default: 1)")
    add("--only", nargs="+", choices=[one.name for one in CONTENDERS], metavar="CONTENDER",
        help="compare these with the bare route, and no others")  # fmt: skip
    add("--rows", nargs="*", choices=list(rows.ROWS), default=list(rows.ROWS), metavar="ROW",
        help=f"further questions to answer: {', '.join(rows.ROWS)} (default: all)")  # fmt: skip
    add("--journal-runs", type=_positive, default=1_000_000, help="of the full journal")
    add("--day-runs", type=_positive, default=300_000, help="of one day, to be looked at")
    add("--queued", type=_positive, default=10_000, help="runs that a worker finds waiting")
    add("--breakdown", nargs="?", type=_positive, const=breakdown.SAMPLES, metavar="SAMPLES",
        help="show the stages of one request in one process, too")  # fmt: skip
    add("--directory", type=Path, help="where contenders keep data and logs (default: removed)")
    add("--results", type=Path, default=_RESULTS, help="where the JSON goes")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return number


def _end(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # So that everything that was started is ended.


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        if any(wanted.iterdir()):
            raise BenchError(f"{wanted} is not empty; name another --directory")
        yield wanted.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="alert-receiver-bench-") as name:
            yield Path(name)


def _run(options: argparse.Namespace, directory: Path) -> None:
    template = directory / "notification.json"
    template.write_text(body_template(options.alerts), encoding="utf-8")
    load = Load(template, options.connections)
    about = {
        "machine": results.machine(directory),
        "rounds_of_each": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "alerts": options.alerts,
        "body_bytes": template.stat().st_size,
    }
    print(_heading(about), flush=True)
    wanted = [one for one in CONTENDERS if one is CONTENDERS[0] or one.name in
              (options.only or [one.name])]  # fmt: skip
    with _running(wanted, directory) as contenders:
        rounds = _drive(contenders, load, options)
        recorded = {one.name: one.recorded() for one in contenders}
    bare = rounds[CONTENDERS[0].name]
    summaries = {name: results.summarize(each, bare) for name, each in rounds.items()}
    print(results.table(summaries), flush=True)
    more: dict[str, Any] = {"recorded_alerts": recorded}
    if options.breakdown:
        timings = breakdown.measure(directory / "breakdown", options.breakdown)
        print(f"\n{breakdown.table(timings)}")
        more["breakdown"] = [asdict(one) for one in timings]
    if options.rows:
        print("\nfurther, median (lowest-highest), target", flush=True)
        warm_ups = min(1, options.warm_up)
        stand = rows.Stand(directory / "rows", options.rounds, options.seconds, warm_ups,
                           options.journal_runs, options.queued,
                           options.day_runs)  # fmt: skip
        answers = rows.measure(stand, options.rows, partial(print, flush=True))
        more["rows"] = [asdict(one) for one in answers]
    print(f"\n{results.write(options.results, about, rounds, summaries, more)}")


def _heading(about: dict[str, Any]) -> str:
    machine = about["machine"]
    return (
        f"{about['rounds_of_each']} rounds of {about['seconds']} s, {about['connections']} "
        f"connections, {about['alerts']} alert(s) in {about['body_bytes']} bytes\n"
        f"commit {machine['commit']}, Python {machine['python']}, {machine['cpus']} CPUs at load "
        f"{machine['load_average']}, a sync of the disk {machine['sync_us']} us\n"
    )


@contextmanager
def _running(wanted: Sequence[type[Contender]], directory: Path) -> Iterator[list[Contender]]:
    with ExitStack() as stack:
        contenders = [one(directory) for one in wanted]
        for one in contenders:
            stack.callback(one.stop)
            one.start()
        for one in contenders:
            one.wait_ready()
        yield contenders


def _drive(
    contenders: Sequence[Contender], load: Load, options: argparse.Namespace
) -> dict[str, list[Round]]:
    """Drive all in turn, a round to warm up first; raise BenchError if one does not do its work."""
    rounds: dict[str, list[Round]] = {one.name: [] for one in contenders}
    answered = dict.fromkeys(rounds, 0)
    warm_ups = [options.warm_up] if options.warm_up > 0 else []
    turns = [*warm_ups, *[options.seconds] * options.rounds]
    for number, seconds in enumerate(turns):
        for one in contenders:
            found = _drive_once(one, load, seconds)
            answered[one.name] += found.answers.answers
            if number >= len(warm_ups):
                rounds[one.name].append(found)
    for one in contenders:
        # wrk leaves at most one request of each connection behind, recorded but not counted.
        unseen = len(turns) * options.connections
        _check_recorded(one, answered[one.name], unseen, options.alerts)
    return rounds


def _drive_once(contender: Contender, load: Load, seconds: int) -> Round:
    cpu_before = contender.cpu_seconds()
    answers = load.drive(contender.url, contender.headers, seconds)
    contender.settle()
    cpu_seconds = contender.cpu_seconds() - cpu_before
    if answers.refused or answers.broken or not answers.answers:
        raise BenchError(
            f"{contender.name}: of {answers.answers} answers {answers.refused} were not 200, "
            f"{answers.broken} requests broke; see {contender.log}, kept with --directory"
        )
    return Round(answers, cpu_seconds)


def _check_recorded(contender: Contender, answered: int, unseen: int, alerts: int) -> None:
    recorded = contender.recorded()
    if recorded is None:
        return
    lowest, highest = answered * alerts, (answered + unseen) * alerts
    if not lowest <= recorded <= highest:
        raise BenchError(
            f"{contender.name}: {answered} notifications were answered, so that the journal must "
            f"hold {lowest} to {highest} alerts; it holds {recorded}"
        )


if __name__ == "__main__":
    sys.exit(main())
