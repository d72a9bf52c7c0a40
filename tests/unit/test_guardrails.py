"""Whether a due run starts, waits, is delayed or is skipped: every branch, and in any order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.declarations import Breaker, Window
from receiver.guardrails import Asking, History, Verdict, decide, is_open
from receiver.policies import Limits, Policy
from tests.support.fuzz import examples
from tests.support.notifications import T0

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
FREE = Verdict("run")
FIRST, AGAIN, UNDO = Asking(), Asking(is_retry=True), Asking(kind="resolved")
THREE = Policy(breaker=Breaker(3, 10 * MINUTE))


def ago(*minutes: float) -> list[datetime]:
    """Return the instants so many minutes ago; the newest comes first, as in a History."""
    return [T0 - one * MINUTE for one in minutes]


def ends(*failed: bool, last: timedelta = MINUTE) -> list[tuple[datetime, bool]]:
    """Return attempts that ended a second after each other, the newest, `last` ago, first."""
    return [(T0 - last - number * SECOND, one) for number, one in enumerate(failed)]


# What a run waits for that has no time


@pytest.mark.parametrize(
    ("policy", "limits", "history", "expected"),
    [
        pytest.param(Policy(), Limits(), History(), FREE, id="nothing speaks against it"),
        pytest.param(
            Policy(), Limits(), History(paused="by ann: deploy"),
            Verdict("wait", "pause", "paused: by ann: deploy"),
            id="paused",
        ),
        pytest.param(
            Policy(), Limits(), History(paused=""), Verdict("wait", "pause", "paused: "),
            id="paused without a word",
        ),
        pytest.param(
            Policy(), Limits(), History(target_busy=True),
            Verdict("wait", "target", "another run of the same target is running"),
            id="target busy",
        ),
        pytest.param(Policy(), Limits(), History(running=3), FREE, id="below max_concurrent"),
        pytest.param(
            Policy(), Limits(), History(running=4),
            Verdict("wait", "max_concurrent",
                    "4 runs of the action are running, as many as max_concurrent says"),
            id="at max_concurrent",
        ),
        pytest.param(
            Policy(max_concurrent=1), Limits(), History(running=2),
            Verdict("wait", "max_concurrent",
                    "2 runs of the action are running, as many as max_concurrent says"),
            id="above max_concurrent, which was lowered",
        ),
        pytest.param(
            Policy(), Limits(max_concurrent=6), History(running=2, running_all=5), FREE,
            id="below the max_concurrent of all",
        ),
        pytest.param(
            Policy(), Limits(max_concurrent=6), History(running=2, running_all=6),
            Verdict("wait", "limits",
                    "6 runs are running, as many as [limits] max_concurrent says"),
            id="at the max_concurrent of all",
        ),
        pytest.param(
            Policy(), Limits(), History(running=3, running_all=10_000), FREE,
            id="no max_concurrent of all",
        ),
    ],
)  # fmt: skip
def test_run_waits_for_what_has_no_time(
    policy: Policy, limits: Limits, history: History, expected: Verdict
) -> None:
    assert decide(FIRST, policy, limits, history, T0) == expected


@pytest.mark.parametrize(
    ("history", "guardrail"),
    [
        pytest.param(
            History("by ann", True, 9, 9, ago(1), ago(1), ago(1), ends(True, True, True)),
            "pause",
            id="pause before all",
        ),
        pytest.param(History(None, True, 9, 9, ago(1)), "target", id="target before number"),
        pytest.param(History(None, False, 9, 9, ago(1)), "max_concurrent", id="own number first"),
        pytest.param(History(None, False, 3, 9, ago(1)), "limits", id="the number of all next"),
        pytest.param(History(None, False, 3, 5, ago(1)), "cooldown", id="limits come last"),
    ],
)
def test_wait_is_told_before_a_delay_and_the_widest_first(history: History, guardrail: str) -> None:
    policy = Policy(cooldown=HOUR, max_concurrent=4, breaker=THREE.breaker)

    assert decide(FIRST, policy, Limits(max_concurrent=6), history, T0).guardrail == guardrail


@pytest.mark.parametrize("asking", [FIRST, AGAIN, UNDO, Asking("repeat"), Asking("escalation")])
@pytest.mark.parametrize(
    "history",
    [
        pytest.param(History(paused="by ann"), id="pause"),
        pytest.param(History(target_busy=True), id="target"),
        pytest.param(History(running=4), id="max_concurrent"),
        pytest.param(History(running_all=6), id="limits"),
    ],
)
def test_no_kind_of_run_gets_past_what_it_must_wait_for(asking: Asking, history: History) -> None:
    verdict = decide(asking, Policy(when_limited="skip"), Limits(max_concurrent=6), history, T0)

    assert (verdict.kind, verdict.until) == ("wait", None)


# The breaker


@pytest.mark.parametrize(
    ("policy", "latest", "expected"),
    [
        pytest.param(THREE, ends(True, True, True), True, id="as many failures as it takes"),
        pytest.param(THREE, ends(*[True] * 9), True, id="more failures"),
        pytest.param(THREE, ends(True, True), False, id="fewer failures"),
        pytest.param(THREE, (), False, id="no attempts"),
        pytest.param(THREE, ends(False, True, True, True), False, id="a success came last"),
        pytest.param(THREE, ends(True, True, False), False, id="a success among the latest"),
        pytest.param(THREE, ends(True, True, True, False), True, id="a success before them"),
        pytest.param(Policy(breaker=None), ends(*[True] * 9), False, id="no breaker"),
        pytest.param(Policy(breaker=Breaker(1, HOUR)), ends(True), True, id="one is enough"),
        pytest.param(Policy(), ends(*[True] * 4), False, id="default, 4 failures"),
        pytest.param(Policy(), ends(*[True] * 5), True, id="default, 5 failures"),
    ],
)
def test_breaker_opens_after_failures_in_a_row(
    policy: Policy, latest: Sequence[tuple[datetime, bool]], expected: bool
) -> None:
    assert is_open(policy, latest) is expected


FAILED = "the breaker is open: the last 3 attempts of the action failed"
HALF_OPEN = Verdict(
    "wait", "breaker",
    "the breaker is half open: one run at a time shows whether the action works again",
)  # fmt: skip


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param(
            History(ends=ends(True, True, True)),
            Verdict("delay", "breaker", f"delayed: {FAILED}", T0 + 9 * MINUTE),
            id="open until its pause is over",
        ),
        pytest.param(
            History(ends=ends(True, True, True, last=10 * MINUTE - MICROSECOND)),
            Verdict("delay", "breaker", f"delayed: {FAILED}", T0 + MICROSECOND),
            id="open to the last moment",
        ),
        pytest.param(
            History(ends=ends(True, True, True, last=10 * MINUTE)), FREE, id="half open: the one"
        ),
        pytest.param(
            History(running=1, ends=ends(True, True, True, last=10 * MINUTE)),
            HALF_OPEN,
            id="half open: another",
        ),
        pytest.param(
            History(running=1, running_all=1, ends=ends(False, True, True)), FREE, id="closed again"
        ),
        pytest.param(
            History(running_all=3, ends=ends(True, True, True, last=HOUR)),
            FREE,
            id="half open: runs of other actions do not count",
        ),
    ],
)
@pytest.mark.parametrize("asking", [FIRST, AGAIN, UNDO], ids=["fired", "retry", "resolved"])
def test_open_breaker_delays_every_run_and_lets_one_through_afterwards(
    asking: Asking, history: History, expected: Verdict
) -> None:
    assert decide(asking, THREE, Limits(), history, T0) == expected


# Limits


TWO_WINDOWS = Policy(rate_limit=(Window(2, HOUR), Window(3, 24 * HOUR)))
NO_MORE = "there were {} already ({})"


@pytest.mark.parametrize(
    ("policy", "limits", "history", "expected"),
    [
        pytest.param(Policy(cooldown=HOUR), Limits(), History(), None, id="cooldown, no start"),
        pytest.param(
            Policy(cooldown=HOUR), Limits(), History(target_starts=ago(20, 90)),
            ("cooldown", "the action ran for this target less than 1h ago (cooldown)", 40),
            id="cooldown after the latest start",
        ),
        pytest.param(
            Policy(cooldown=HOUR), Limits(), History(target_starts=ago(60, 61)), None,
            id="cooldown over",
        ),
        pytest.param(
            Policy(cooldown=HOUR), Limits(), History(action_starts=ago(1), all_starts=ago(1)), None,
            id="cooldown of another target",
        ),
        pytest.param(
            Policy(rate_limit=(Window(2, HOUR),)), Limits(), History(target_starts=ago(1)), None,
            id="rate_limit has room",
        ),
        pytest.param(
            Policy(rate_limit=(Window(2, HOUR),)), Limits(), History(target_starts=ago(1, 50)),
            ("rate_limit", NO_MORE.format("2 runs in 1h for this target", "rate_limit"), 10),
            id="rate_limit used up until the second latest falls out",
        ),
        pytest.param(
            Policy(rate_limit=(Window(2, HOUR),)), Limits(), History(target_starts=ago(1, 60)),
            None,
            id="rate_limit: a start exactly one period ago has fallen out",
        ),
        pytest.param(
            Policy(rate_limit=(Window(2, HOUR),)), Limits(),
            History(target_starts=ago(0, 0, 0, 0)),
            ("rate_limit", NO_MORE.format("2 runs in 1h for this target", "rate_limit"), 60),
            id="rate_limit exceeded already, for it was lowered",
        ),
        pytest.param(
            Policy(rate_limit=(Window(2, HOUR),)), Limits(),
            History(action_starts=ago(1, 1, 1), all_starts=ago(1, 1, 1)), None,
            id="rate_limit of other targets",
        ),
        pytest.param(
            TWO_WINDOWS, Limits(), History(target_starts=ago(1, 50)),
            ("rate_limit", NO_MORE.format("2 runs in 1h for this target", "rate_limit"), 10),
            id="two windows: the short one is full",
        ),
        pytest.param(
            TWO_WINDOWS, Limits(), History(target_starts=ago(1, 100, 1400)),
            ("rate_limit", NO_MORE.format("3 runs in 1d for this target", "rate_limit"), 40),
            id="two windows: the long one is full",
        ),
        pytest.param(
            TWO_WINDOWS, Limits(), History(target_starts=ago(1, 2, 1439)),
            ("rate_limit", NO_MORE.format("2 runs in 1h for this target", "rate_limit"), 58),
            id="two windows: both are full, the short one for longer",
        ),
        pytest.param(
            Policy(overall_rate_limit=(Window(1, HOUR),)), Limits(),
            History(action_starts=ago(15)),
            ("overall_rate_limit",
             NO_MORE.format("1 runs in 1h of this action", "overall_rate_limit"), 45),
            id="overall_rate_limit",
        ),
        pytest.param(
            Policy(overall_rate_limit=(Window(1, HOUR),)), Limits(),
            History(all_starts=ago(15)), None,
            id="overall_rate_limit: starts of other actions do not count",
        ),
        pytest.param(
            Policy(), Limits(rate_limit=(Window(3, HOUR),)), History(all_starts=ago(1, 2, 30, 40)),
            ("limits", NO_MORE.format("3 runs in 1h of all actions", "limits"), 30),
            id="[limits] rate_limit",
        ),
        pytest.param(
            Policy(cooldown=30 * MINUTE, rate_limit=(Window(1, 20 * MINUTE),),
                   overall_rate_limit=(Window(1, 10 * MINUTE),)),
            Limits(rate_limit=(Window(1, 40 * MINUTE),)),
            History(target_starts=ago(5), action_starts=ago(5), all_starts=ago(5)),
            ("limits", NO_MORE.format("1 runs in 40m of all actions", "limits"), 35),
            id="all at once: the one that lasts longest is told",
        ),
        pytest.param(
            Policy(cooldown=HOUR, rate_limit=(Window(1, HOUR),)), Limits(),
            History(target_starts=ago(5)),
            ("cooldown", "the action ran for this target less than 1h ago (cooldown)", 55),
            id="two that last equally long: the first is told",
        ),
        pytest.param(
            replace(THREE, cooldown=HOUR), Limits(),
            History(target_starts=ago(59), ends=ends(True, True, True)),
            ("breaker", FAILED, 9),
            id="breaker and cooldown: the longer",
        ),
    ],
)  # fmt: skip
def test_limit_delays_until_there_is_room(
    policy: Policy, limits: Limits, history: History, expected: tuple[str, str, int] | None
) -> None:
    verdict = decide(FIRST, policy, limits, history, T0)

    if expected is None:
        assert verdict == FREE
    else:
        guardrail, reason, minutes = expected
        until = T0 + minutes * MINUTE
        assert verdict == Verdict("delay", guardrail, f"delayed: {reason}", until)


LIMITED = Policy(
    cooldown=HOUR, rate_limit=(Window(1, HOUR),), overall_rate_limit=(Window(1, HOUR),)
)


@pytest.mark.parametrize(
    ("asking", "is_held"),
    [
        pytest.param(Asking("fired"), True, id="fired"),
        pytest.param(Asking("repeat"), True, id="repeat"),
        pytest.param(Asking("escalation"), True, id="escalation"),
        pytest.param(Asking("fired", is_retry=True), False, id="another attempt"),
        pytest.param(Asking("resolved"), False, id="what undoes"),
    ],
)
def test_limits_hold_back_what_starts_but_not_what_started_or_undoes(
    asking: Asking, is_held: bool
) -> None:
    history = History(target_starts=ago(1), action_starts=ago(1), all_starts=ago(1))
    verdict = decide(asking, LIMITED, Limits(rate_limit=(Window(1, HOUR),)), history, T0)

    assert verdict.kind == ("delay" if is_held else "run")


# Delay or skip


COOLING = History(target_starts=ago(10))
COOLDOWN = "the action ran for this target less than 1h ago (cooldown)"
DELAY, SKIP = Policy(cooldown=HOUR), Policy(cooldown=HOUR, when_limited="skip")
SHORT = Policy(cooldown=HOUR, max_delay=30 * MINUTE)
TOO_LONG = "and it was delayed for 30m (max_delay)"


def held(minutes: float, is_retry: bool = False) -> Asking:
    return Asking(is_retry=is_retry, held_since=T0 - minutes * MINUTE)


@pytest.mark.parametrize(
    ("asking", "policy", "history", "expected"),
    [
        pytest.param(
            FIRST, DELAY, COOLING,
            Verdict("delay", "cooldown", f"delayed: {COOLDOWN}", T0 + 50 * MINUTE),
            id="delayed until the limit ends",
        ),
        pytest.param(
            FIRST, SKIP, COOLING,
            Verdict("skip", "cooldown", f"skipped: {COOLDOWN}; when_limited is skip"),
            id="skipped where that is asked for",
        ),
        pytest.param(FIRST, SKIP, History(), FREE, id="skip: nothing limits it"),
        pytest.param(
            FIRST, SKIP, History(target_busy=True),
            Verdict("wait", "target", "another run of the same target is running"),
            id="skip: what waits is not skipped",
        ),
        pytest.param(
            AGAIN, replace(THREE, when_limited="skip"), History(ends=ends(True, True, True)),
            Verdict("delay", "breaker", f"delayed: {FAILED}", T0 + 9 * MINUTE),
            id="skip: another attempt is delayed all the same",
        ),
        pytest.param(
            UNDO, replace(THREE, when_limited="skip"), History(ends=ends(True, True, True)),
            Verdict("delay", "breaker", f"delayed: {FAILED}", T0 + 9 * MINUTE),
            id="skip: what undoes is delayed all the same",
        ),
        pytest.param(
            FIRST, SHORT, COOLING,
            Verdict("delay", "cooldown", f"delayed: {COOLDOWN}", T0 + 30 * MINUTE),
            id="max_delay: decided again when it is over",
        ),
        pytest.param(
            held(10), SHORT, COOLING,
            Verdict("delay", "cooldown", f"delayed: {COOLDOWN}", T0 + 20 * MINUTE),
            id="max_delay: counted from the first delay",
        ),
        pytest.param(
            held(30), SHORT, COOLING,
            Verdict("skip", "cooldown", f"skipped: {COOLDOWN}, {TOO_LONG}"),
            id="max_delay: over",
        ),
        pytest.param(
            held(3000), SHORT, COOLING,
            Verdict("skip", "cooldown", f"skipped: {COOLDOWN}, {TOO_LONG}"),
            id="max_delay: long over",
        ),
        pytest.param(held(3000), SHORT, History(), FREE, id="max_delay: over, but free to start"),
        pytest.param(
            held(3000), SHORT, History(paused="by ann"), Verdict("wait", "pause", "paused: by ann"),
            id="max_delay: a pause skips nothing",
        ),
        pytest.param(
            held(30, is_retry=True), replace(THREE, max_delay=30 * MINUTE),
            History(ends=ends(True, True, True)),
            Verdict("skip", "breaker", f"skipped: {FAILED}, {TOO_LONG}"),
            id="max_delay: over for another attempt",
        ),
        pytest.param(
            FIRST, Policy(cooldown=HOUR, max_delay=timedelta(0)), COOLING,
            Verdict("skip", "cooldown",
                    f"skipped: {COOLDOWN}, and it was delayed for 0s (max_delay)"),
            id="max_delay: none at all",
        ),
    ],
)  # fmt: skip
def test_limited_run_is_delayed_or_skipped_as_the_policy_says(
    asking: Asking, policy: Policy, history: History, expected: Verdict
) -> None:
    assert decide(asking, policy, Limits(), history, T0) == expected


# In any order: decide() is fed with the history that its own verdicts make


@dataclass(eq=False)
class Run:
    """A run of the simulation."""

    action: str
    target: str
    kind: str
    due_at: datetime
    attempts: int = 0
    held_since: datetime | None = None
    verdict: Verdict | None = None
    ended_at: datetime | None = None


@dataclass
class World:
    """A journal in memory and the worker on it, for two actions."""

    policies: dict[str, Policy]
    limits: Limits
    now: datetime = T0
    paused: bool = False
    queued: list[Run] = field(default_factory=list)
    running: list[Run] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    # Counted starts, and what ended, in order of time.
    starts: list[tuple[datetime, Run]] = field(default_factory=list)
    ends: list[tuple[datetime, str, bool]] = field(default_factory=list)

    def arrive(self, action: str, target: str, kind: str = "fired") -> Run:
        run = Run(action, target, kind, self.now)
        self.queued.append(run)
        return run

    def history(self, run: Run) -> History:
        def starts(counts: Callable[[Run], bool]) -> list[datetime]:
            return [at for at, one in reversed(self.starts) if counts(one)]

        of_action = [one for one in self.running if one.action == run.action]
        return History(
            paused="by ann" if self.paused else None,
            target_busy=any(one.target == run.target for one in of_action),
            running=len(of_action),
            running_all=len(self.running),
            target_starts=starts(lambda one: (one.action, one.target) == (run.action, run.target)),
            action_starts=starts(lambda one: one.action == run.action),
            all_starts=starts(lambda one: True),
            ends=[(at, bad) for at, name, bad in reversed(self.ends) if name == run.action],
        )

    def claim(self) -> list[Run]:
        """Start all that may start now."""
        started = []
        for run in sorted(self.queued, key=lambda one: one.due_at):
            if run.due_at > self.now:
                continue
            asking = Asking(run.kind, run.attempts > 0, run.held_since)
            policy = self.policies[run.action]
            run.verdict = decide(asking, policy, self.limits, self.history(run), self.now)
            if run.verdict.kind == "run":
                self.queued.remove(run)
                self.running.append(run)
                if not asking.is_retry:
                    self.starts.append((self.now, run))
                run.attempts += 1
                run.held_since = None
                started.append(run)
            elif run.verdict.kind == "skip":
                self.queued.remove(run)
                self.skipped.append(run)
                run.ended_at = self.now
            elif run.verdict.kind == "delay":
                assert run.verdict.until is not None
                assert run.verdict.until > self.now
                run.due_at = run.verdict.until
                run.held_since = run.held_since or self.now
        return started

    def finish(self, run: Run, failed: bool, backoff: timedelta = SECOND) -> None:
        self.running.remove(run)
        if run.kind != "resolved":
            self.ends.append((self.now, run.action, failed))
        if failed and run.attempts < self.policies[run.action].max_attempts:
            run.due_at = self.now + backoff
            self.queued.append(run)
        else:
            run.ended_at = self.now

    def starts_by(
        self, key: Callable[[Run], object], exempt: tuple[str, ...] = ("resolved",)
    ) -> Iterable[list[datetime]]:
        """Return the starts that limits hold back, in order of time, of each group."""
        groups: dict[object, list[datetime]] = {}
        for at, run in self.starts:
            if run.kind not in exempt:
                groups.setdefault(key(run), []).append(at)
        return groups.values()


SECONDS = st.integers(1, 200).map(lambda number: number * SECOND)
WINDOWS = st.lists(st.builds(Window, st.integers(1, 4), SECONDS), max_size=2).map(tuple)
POLICIES = st.builds(
    Policy,
    max_attempts=st.integers(1, 3),
    max_concurrent=st.integers(1, 4),
    cooldown=st.none() | SECONDS,
    rate_limit=WINDOWS,
    overall_rate_limit=WINDOWS,
    breaker=st.none() | st.builds(Breaker, st.integers(1, 4), SECONDS),
    when_limited=st.sampled_from(["delay", "delay", "skip"]),
    max_delay=st.integers(0, 600).map(lambda number: number * SECOND),
)
LIMITS = st.builds(Limits, rate_limit=WINDOWS, max_concurrent=st.none() | st.integers(1, 5))
WORLDS = st.builds(World, st.fixed_dictionaries({"a": POLICIES, "b": POLICIES}), LIMITS)
KINDS = st.sampled_from(["fired", "fired", "fired", "repeat", "escalation", "resolved"])
ARRIVALS = st.tuples(st.just("arrive"), st.sampled_from("ab"), st.sampled_from("xyz"), KINDS)
STEPS = st.lists(
    ARRIVALS
    | ARRIVALS
    | st.tuples(st.just("finish"), st.integers(0, 9), st.booleans())
    | st.tuples(st.just("move"), SECONDS)
    | st.tuples(st.just("pause"), st.booleans()),
    min_size=10,
    max_size=80,
)
Step = tuple[object, ...]


def take(world: World, step: Step) -> None:
    """Let one thing happen in the world."""
    match step:
        case ("arrive", str(action), str(target), str(kind)):
            world.arrive(action, target, kind)
        case ("finish", int(which), bool(failed)):
            if world.running:
                world.finish(world.running[which % len(world.running)], failed)
        case ("move", timedelta() as by):
            world.now += by
        case ("pause", bool(paused)):
            world.paused = paused


def assert_never_more(starts: Sequence[datetime], windows: Iterable[Window]) -> None:
    """No window of any length `period`, wherever it begins, holds more than `number` starts."""
    for number, period in windows:
        for first, last in zip(starts, starts[number:], strict=False):
            assert last - first >= period


@examples(200)
@given(WORLDS, STEPS)
def test_limit_is_never_exceeded_in_any_interleaving(world: World, steps: list[Step]) -> None:
    for step in steps:
        take(world, step)
        started = world.claim()
        assert not (world.paused and started)
        assert len({(run.action, run.target) for run in world.running}) == len(world.running)
        if world.limits.max_concurrent is not None:
            assert len(world.running) <= world.limits.max_concurrent
        for action, policy in world.policies.items():
            of_action = [run for run in world.running if run.action == action]
            assert len(of_action) <= policy.max_concurrent

    for action, policy in world.policies.items():
        own = replace(world, starts=[one for one in world.starts if one[1].action == action])
        cooldown = (Window(1, policy.cooldown),) if policy.cooldown else ()
        for starts in own.starts_by(lambda run: run.target):
            assert_never_more(starts, (*cooldown, *policy.rate_limit))
        for starts in own.starts_by(lambda run: ""):
            assert_never_more(starts, policy.overall_rate_limit)
    for starts in world.starts_by(lambda run: "", exempt=("resolved", "escalation")):
        assert_never_more(starts, world.limits.rate_limit)


@examples(150)
@given(WORLDS, STEPS)
def test_start_of_what_undoes_counts_for_what_starts_later(world: World, steps: list[Step]) -> None:
    for step in steps:
        take(world, step)
        world.claim()

    all_starts = [at for at, _ in world.starts]
    for place, (at, run) in enumerate(world.starts):
        is_exempt = run.kind in ("resolved", "escalation")
        for number, period in () if is_exempt else world.limits.rate_limit:
            before = all_starts[: place + 1]
            assert sum(at - one < period for one in before) <= number


@examples(200)
@given(WORLDS, STEPS, st.data())
def test_run_is_never_held_for_ever(world: World, steps: list[Step], data: st.DataObject) -> None:
    first_held: dict[Run, datetime] = {}
    known: set[Run] = set()

    def claim() -> list[Run]:
        started = world.claim()
        for run in world.queued:
            if run.held_since is not None:
                first_held.setdefault(run, run.held_since)
        for run in (*started, *world.skipped):
            # Neither earlier nor later than promised: it is decided when its time has come.
            if run in first_held:
                until = first_held.pop(run) + world.policies[run.action].max_delay
                assert world.now <= until
        return started

    for step in steps:
        if step[0] == "arrive":
            take(world, step)
            known.add(world.queued[-1])
    for _ in range(100 * len(steps)):
        # What was claimed ends at once: nothing but the guardrails holds a run back.
        while started := claim():
            for run in started:
                world.finish(run, data.draw(st.booleans()))
        if not world.queued:
            break
        next_due = min(run.due_at for run in world.queued)
        # With nothing running and nothing paused, whatever waits waits for a time.
        assert next_due > world.now
        world.now = next_due

    assert not world.queued
    assert all(run.ended_at is not None for run in known)


ENDINGS = st.tuples(st.just("finish"), st.integers(0, 9), st.booleans())
MOVES = st.tuples(st.just("move"), SECONDS)


@examples(200)
@given(
    st.builds(Breaker, st.integers(1, 4), SECONDS),
    st.integers(1, 5),
    st.lists(ENDINGS | MOVES, max_size=40),
)
def test_breaker_pauses_after_failures_and_lets_one_at_a_time_through_until_one_succeeds(
    breaker: Breaker, max_concurrent: int, steps: list[Step]
) -> None:
    policy = Policy(
        breaker=breaker, max_concurrent=max_concurrent, max_attempts=1, max_delay=9999 * HOUR
    )
    world = World({"a": policy}, Limits())
    # More than can start, each for a target of its own: only the breaker holds one back.
    for number in range(len(steps) + max_concurrent + 1):
        world.arrive("a", str(number))

    failures_in_a_row = 0
    opened_at = T0
    for step in (("move", SECOND), *steps):
        ended = len(world.ends)
        take(world, step)
        for at, _, failed in world.ends[ended:]:
            failures_in_a_row = failures_in_a_row + 1 if failed else 0
            opened_at = at
        before = len(world.running)
        due = sum(run.due_at <= world.now for run in world.queued)
        started = world.claim()
        if failures_in_a_row < breaker.failures:
            assert len(world.running) == min(max_concurrent, before + due)
        elif world.now < opened_at + breaker.pause or before:
            assert started == []
        else:
            assert len(started) == min(1, due)


# Clocks that were ahead

A_YEAR = timedelta(days=365)
LIMITED = Policy(
    cooldown=HOUR,
    rate_limit=(Window(2, HOUR),),
    overall_rate_limit=(Window(2, HOUR),),
    breaker=Breaker(3, 10 * MINUTE),
)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(History(target_starts=[T0 + A_YEAR]), id="cooldown"),
        pytest.param(History(target_starts=[T0 + A_YEAR, T0 + A_YEAR - SECOND]), id="rate_limit"),
        pytest.param(History(action_starts=[T0 + A_YEAR] * 2), id="overall_rate_limit"),
        pytest.param(History(all_starts=[T0 + A_YEAR] * 2), id="limits of all actions"),
        pytest.param(History(ends=[(T0 + A_YEAR, True)] * 3), id="breaker"),
        pytest.param(
            History(ends=[(T0 + A_YEAR, True), *ends(True, True)]), id="breaker, one failure ahead"
        ),
        pytest.param(History(target_starts=[T0 + MINUTE + MICROSECOND]), id="just too far ahead"),
    ],
)
def test_what_a_clock_recorded_that_was_ahead_holds_nothing_back(history: History) -> None:
    limits = Limits(rate_limit=(Window(2, HOUR),))

    assert decide(FIRST, LIMITED, limits, history, T0) == FREE


@pytest.mark.parametrize("ahead", [MICROSECOND, 2 * SECOND, MINUTE])
@pytest.mark.parametrize(
    "history_of",
    [
        pytest.param(lambda at: History(target_starts=[at]), id="cooldown"),
        pytest.param(lambda at: History(action_starts=[at, at]), id="overall_rate_limit"),
        pytest.param(lambda at: History(ends=[(at, True)] * 3), id="breaker"),
    ],
)
def test_step_back_of_the_clock_by_seconds_opens_no_limit(
    history_of: Callable[[datetime], History], ahead: timedelta
) -> None:
    found = decide(FIRST, LIMITED, Limits(), history_of(T0 + ahead), T0)

    assert found.kind == "delay"
    # It counts as now: the step back does not make the wait longer.
    assert found == decide(FIRST, LIMITED, Limits(), history_of(T0), T0)


def test_delay_that_a_clock_ahead_began_begins_now() -> None:
    history = History(target_starts=ago(1))
    asking = Asking(held_since=T0 + A_YEAR)

    found = decide(asking, Policy(cooldown=HOUR, max_delay=HOUR), Limits(), history, T0)

    assert (found.kind, found.until) == ("delay", T0 + 59 * MINUTE)


INSTANTS_BEFORE = st.timedeltas(timedelta(0), 2 * HOUR).map(lambda before: T0 - before)
INSTANTS_AHEAD = st.timedeltas(MINUTE + MICROSECOND, A_YEAR).map(lambda ahead: T0 + ahead)


def newest_first(starts: Iterable[datetime]) -> list[datetime]:
    return sorted(starts, reverse=True)


@given(
    counted=st.lists(INSTANTS_BEFORE, max_size=4),
    failures=st.lists(st.tuples(INSTANTS_BEFORE, st.booleans()), max_size=4),
    ahead=st.lists(INSTANTS_AHEAD, max_size=4),
    asking=st.sampled_from([FIRST, AGAIN, UNDO, Asking("escalation")]),
)
def test_instants_that_lie_ahead_never_change_a_verdict(
    counted: list[datetime],
    failures: list[tuple[datetime, bool]],
    ahead: list[datetime],
    asking: Asking,
) -> None:
    limits = Limits(rate_limit=(Window(3, HOUR),))
    failures = sorted(failures, reverse=True)
    counted = newest_first(counted)
    alone = History(None, False, 0, 0, counted, counted, counted, failures)
    more = newest_first([*counted, *ahead])
    with_ahead = replace(
        alone,
        target_starts=more,
        action_starts=more,
        all_starts=more,
        ends=[*((at, True) for at in newest_first(ahead)), *failures],
    )

    assert decide(asking, LIMITED, limits, with_ahead, T0) == decide(
        asking, LIMITED, limits, alone, T0
    )
