"""The end of a run, and the plan of one, as a text that a person reads in ten seconds."""

from __future__ import annotations

from collections.abc import Sequence

from clear_ray.redaction import printable
from clear_ray.report.plan import GainReport, PlanReport
from clear_ray.report.summary import (
    AttemptsReport,
    BudgetPoint,
    EngineReport,
    LearningReport,
    RoundReport,
    RunReport,
)
from clear_ray.report.wording import (
    amount,
    answers,
    count,
    duration,
    expected,
    per_thousand,
    percent,
    plural,
    priced,
    solved_by,
    taught,
    times,
)

_MOST_ROUNDS = 6
_MOST_NOTICES, _MOST_FAILURES = 6, 3
_PLAIN_VERDICTS = ("right", "wrong", "cut off")
"""Verdicts that the line of correct answers or the one of answers says already."""
_MOST_BUDGETS = 9
_WORTH_SAYING = 0.005


def summary_text(report: RunReport) -> str:
    """Return the report of a run in at most 25 aligned lines of plain text, without a final line end."""
    model, head = printable(report.model, most=60), printable(report.head, most=40)
    lines = [f"{plural(report.queries, 'query')} in {duration(report.seconds)}, model {model}, head {head}"]
    if report.stopped_early:
        lines.append(_labelled("ended", f"early: {printable(report.stopped_early, most=160)}"))
    lines += _noticed(report.notices)
    lines += [_labelled(label, value) for label, value in _account(report)]
    lines += [
        _labelled("failed", f"{count(failure.queries)}: {printable(failure.reason, most=160)}")
        for failure in report.failures[:_MOST_FAILURES]
    ]
    if report.rounds:
        lines += ["", *_round_table(report)]
    if report.main_round is not None:
        lines += ["", _certificate(report.main_round, report.queries)]
    lines += [_labelled("warning", printable(warning, most=400)) for warning in report.warnings]
    if report.wasted_tokens:
        wasted = f"{amount(report.wasted_tokens, report.unit)} whose answers were lost; they stay charged"
        lines.append(_labelled("wasted", wasted))
    if report.learning is not None:
        lines.append(_labelled("learned", _learned(report.learning)))
        if report.learning.nats_of_sets:
            worth = _worth_of_sets(report.learning)
            lines.append(_labelled("features", f"worth of each alone, nats an answer (0: it tells nothing): {worth}"))
        lines += [_labelled("store", printable(note, most=400)) for note in report.learning.store_notes]
    elif report.head == "prior" and report.policy == "clear_ray":
        lines.append(_UNCALIBRATED)
    several = report.attempts is not None or (report.engines and report.policy == "clear_ray")
    written = f"{'attempts/, ' if several else ''}completions/, summary.json, report.html"
    lines.append(_labelled("outputs", f"{printable(report.run_dir, most=400)}: {written}"))
    return "\n".join(lines)


def plan_text(plan: PlanReport) -> str:
    """Return the plan of a batch in at most 25 aligned lines of plain text, without a final line end."""
    source = "estimated by a probe of the model" if plan.is_probed else "estimated from prompt lengths alone"
    guesses = (("low", plan.low_tokens), ("expected", plan.expected_tokens), ("worst", plan.worst_tokens))
    spend = ", ".join(f"{name} {_bare(number, plan.unit)}" for name, number in guesses)
    if plan.high_tokens is not None:
        between = f"{_bare(plan.low_tokens, plan.unit)} to {_bare(plan.high_tokens, plan.unit)}"
        took = f"{plural(plan.sampled_answers, 'sampled answer')}, which took {_bare(plan.sample_tokens, plan.unit)}"
        spend += f"{' tokens' if plan.unit == 'tokens' else ''}; {between} in nine of ten such batches, by {took}"
    hoped = f"{expected(plan.expected_utility)} correct answers; {_against(plan.uniform_expected_utility)}"
    gain = times(plan.expected_utility, plan.uniform_expected_utility)
    pairs = [
        ("budget", amount(plan.budget_tokens, plan.unit)),
        ("spend", f"{spend} tokens" if plan.unit == "tokens" and plan.high_tokens is None else spend),
        ("price", _price(plan.shadow_price, plan.unit)),
        ("funded", f"{count(plan.funded)} of {count(plan.queries)}, {_unfunded(plan)}"),
        ("expected", f"{hoped} ({gain})" if gain else hoped),
        ("prompts", _to_read(plan)),
    ]
    if plan.engines:
        first = ", ".join(f"{printable(name, most=40)} {count(queries)}" for name, queries in plan.engines.items())
        pairs.insert(4, ("engines", f"asked first: {first}"))
    if plan.for_share is not None:
        asked = plan.for_share
        buys = f"{expected(asked.expected_utility)} of the {expected(asked.most_utility)} that ample tokens would give"
        pairs.append((f"for {asked.share:.0%}", f"{amount(asked.budget_tokens, plan.unit)}, expected to give {buys}"))
    if plan.gain is not None:
        pairs.append(("gain", _gain(plan.gain)))
    lines = [f"{plural(plan.queries, 'query')}, {source}", *_noticed(plan.notices)]
    lines += [_labelled(label, value) for label, value in pairs]
    lines += [_labelled("warning", printable(warning, most=400)) for warning in plan.warnings]
    if plan.learning is not None:
        lines.append(_labelled("learns", _will_learn(plan.learning)))
        lines += [_labelled("store", printable(note, most=400)) for note in plan.learning.store_notes]
    elif plan.head == "prior":
        lines.append(_UNCALIBRATED)
    if plan.budget_curve:
        lines += ["", "What other budgets are expected to buy:", *_budget_table(plan)]
    return "\n".join(lines)


def notices_text(notices: Sequence[str]) -> list[str]:
    """Return what is said about an input and its model, a line each, as a terminal may show it."""
    return [printable(line, most=400) for line in notices]


def _noticed(notices: Sequence[str]) -> list[str]:
    more = len(notices) - _MOST_NOTICES
    shown = notices_text(notices[:_MOST_NOTICES])
    shown += [f"and {more} more: `clear-ray validate` says them all"] if more > 0 else []
    return [_labelled("note", line) for line in shown]


def _unfunded(plan: PlanReport) -> str:
    if plan.kept_tokens:
        return f"minimum service of {amount(plan.kept_tokens, plan.unit)} for {count(plan.abandoned)}"
    return f"abandoned {count(plan.abandoned)}"


def _labelled(label: str, value: str) -> str:
    return f"  {label:<13}{value}"


_UNCALIBRATED = _labelled(
    "estimate", "the prior, which knows too little to beat equal ceilings; `clear-ray calibrate` fits a head"
)


def _will_learn(learning: LearningReport) -> str:
    if learning.left_out:
        return f"nothing: {learning.left_out}; equal ceilings, about"
    if learning.earlier_answers:
        known = f"{count(learning.earlier_answers)} answers of earlier runs are known"
        return f"from {taught(learning.label, learning.features)}; {known}"
    return f"from {taught(learning.label, learning.features)}; nothing is known yet, and the figures say so"


def _gain(gain: GainReport) -> str:
    """Return what is to be gained over equal ceilings, and how that is known."""
    between = (
        f"{expected(gain.low)} to {expected(gain.high)} right answers over equal ceilings in nine of ten such batches"
    )
    known = {
        "head": "by the head",
        "store": f"by {plural(gain.answers, 'answer')} of earlier runs",
        "sample": f"by {plural(gain.answers, 'sampled answer')}",
        "nothing": "and nothing is known of this one: --sample-share 0.01 asks a few",
    }[gain.source]
    if gain.is_expected:
        return f"about {expected(gain.expected)}: {between}, {known}"
    return f"no gain expected here, since answers are short, alike or seldom right: {between}, {known}"


def _learned(learning: LearningReport) -> str:
    if learning.left_out:
        return f"nothing: {learning.left_out}; equal ceilings, about"
    share = percent(learning.learned_share + learning.given_share)
    began = f", after {count(learning.earlier_answers)} of earlier runs" if learning.earlier_answers else ""
    what = taught(learning.label, learning.features)
    alike = (
        f", the curve of them all {percent(learning.pooled_share)}" if learning.pooled_share >= _WORTH_SAYING else ""
    )
    return f"from {count(learning.answers)} answers{began}: {what}; trusted {share}{alike}"


def _worth_of_sets(learning: LearningReport) -> str:
    """Return how much better each feature set alone predicts answers than none, nats an answer."""
    return ", ".join(f"{printable(name, most=40)} {nats:.2f}" for name, nats in learning.nats_of_sets.items())


def _price(shadow_price: float, unit: str) -> str:
    return priced(shadow_price, unit) if shadow_price > 0 else "0: nothing competes for the budget"


def _price_of(report: RunReport) -> str:
    """Return the shadow price of a run in words; why there is none, though queries were left."""
    if report.ran_short:
        return "0: too little was left when the others' turn came"
    if report.shadow_price == 0 and report.abandoned and report.stopped_early:
        return "0: it ended before anything competed for the budget"
    return _price(report.shadow_price, report.unit)


def _charged(probe_tokens: int, unit: str) -> str:
    if unit == "tokens":
        return "not charged to the budget"
    return f"{amount(probe_tokens, unit)} of it for the probe" if probe_tokens else "charged with each call"


def _against(uniform_utility: float, max_tokens: int | None = None) -> str:
    ceiling = "uniform ceilings" if max_tokens is None else f"a uniform ceiling of {count(max_tokens)} tokens"
    return f"{ceiling}: {expected(uniform_utility)}"


def _account(report: RunReport) -> list[tuple[str, str]]:
    """Return label and value of every line about the whole run."""
    share = percent(report.spent_tokens / report.budget_tokens) if report.budget_tokens else percent(None)
    spent, slack = (_bare(number, report.unit) for number in (report.spent_tokens, report.slack_tokens))
    spent = f"spent {spent} ({share}), slack {slack}"
    if report.unit != "tokens":
        spent += f"; {count(report.generated_tokens)} tokens generated"
    elif report.generated_tokens != report.spent_tokens:
        spent += f"; {count(report.generated_tokens)} generated, at the costs of the input"
    ends = f"abandoned {count(report.abandoned)}, failed {count(report.failed)}"
    if report.served:
        ends = f"minimum service for {count(report.served)}, {ends}"
    answered = f"{count(report.stopped)} ended by themselves, {count(report.truncated)} cut off"
    gain = times(report.expected_utility, report.uniform_expected_utility)
    uniform = _against(report.uniform_expected_utility, report.uniform_max_tokens)
    when = "by what it knows now" if report.has_learned else "at the first clearing"
    when = "at one price of all" if report.is_streamed else when
    hoped = f"{expected(report.expected_utility)} correct {when}; {uniform}"
    pairs = [
        ("budget", f"{amount(report.budget_tokens, report.unit)}, {spent}"),
        ("price", _price_of(report)),
        ("funded", f"{count(report.funded)} of {count(report.queries)}, {ends}"),
        ("answered", f"{count(report.completed)}: {answered}"),
        ("expected", f"{hoped} ({gain})" if gain else hoped),
        ("prompts", _prompts_read(report)),
    ]
    if report.correct is not None:
        found = f"{answers(report.correct)} of {count(report.scored)} with a gold answer ({percent(report.accuracy)})"
        reasons = {reason: times for reason, times in report.verdicts.items() if reason not in _PLAIN_VERDICTS}
        if reasons:
            found += "; " + ", ".join(f"{printable(reason, most=40)} {count(n)}" for reason, n in reasons.items())
        pairs.insert(4, ("correct", found))
    if report.attempts is not None:
        pairs += asked_again(report.attempts, report.unit)
    pairs += [("engine", _engine(engine, report.unit)) for engine in report.engines]
    if report.policy != "clear_ray":
        pairs.insert(0, ("policy", printable(report.policy, most=40)))
    return pairs


def asked_again(found: AttemptsReport, unit: str) -> list[tuple[str, str]]:
    """Return label and value of what came of asking again, and of what one more answer would bring."""
    if found.agreed is not None:
        counted = f"{plural(found.attempts, 'answer')}; of {count(found.agreed)} queries several agree on what was kept"
        if found.objective != "vote":
            return [("compared", counted)]
        more = (
            f"for each query: {expected(found.one_more_solves)} more right, for {amount(found.one_more_tokens, unit)}"
        )
        return [("votes", counted), ("one more", more)]
    numbers = solved_by(found.solved_by_attempt)
    each = "" if found.tokens_per_solved is None else f"; {count(found.tokens_per_solved)} tokens for each solved"
    solved = f"{count(found.solved)} solved in {plural(found.attempts, 'attempt')}" + (
        f": {numbers}" if numbers else ""
    )
    what, done = ("unsolved one", "solved") if found.mixed is None else ("other query", "mixed")
    more = f"at each {what}: {expected(found.one_more_solves)} {done}, for {amount(found.one_more_tokens, unit)}"
    mixed = [] if found.mixed is None else [("groups", f"{count(found.mixed)} queries have a right and a wrong answer")]
    return [*mixed, ("attempts", solved + each), ("one more", more)]


def _engine(found: EngineReport, unit: str) -> str:
    name, model = printable(found.name, most=40), printable(found.model, most=60)
    asked = f"{name}: {plural(found.calls, 'call')} for {amount(found.spent_tokens, unit)}, {plural(found.answers, 'answer')}"
    right = "" if found.correct is None else f", {answers(found.correct)} correct"
    return f"{asked}{right} (model {model}, head {printable(found.head, most=40)})"


def _bare(number: float, unit: str) -> str:
    return amount(number, unit).removesuffix(" tokens")


def _to_read(plan: PlanReport) -> str:
    if not plan.prefill_tokens:
        if plan.probe_tokens:
            return f"the first token of each answer is asked for beforehand, for {amount(plan.probe_tokens, plan.unit)}"
        return "none is read before its answer is bought"
    return f"{count(plan.prefill_tokens)} tokens to read, {_charged(plan.probe_tokens, plan.unit)}"


def _prompts_read(report: RunReport) -> str:
    if not report.prefill_tokens:
        if report.probe_tokens:
            return (
                f"read for first tokens, which took {amount(report.probe_tokens, report.unit)}, and for their answers"
            )
        return "read for their answers alone, by no probe"
    said = f"{count(report.prefill_tokens)} tokens read by the probe, {_charged_for(report)}"
    if not report.spared_prompt_tokens:
        return said
    again = percent(1 - report.spared_prompt_tokens / report.asked_prompt_tokens)
    return f"{said}; of these, and of answers so far, grants read {again} again"


def _charged_for(report: RunReport) -> str:
    return "not charged" if report.unit == "tokens" else _charged(report.probe_tokens, report.unit)


def _certificate(main: RoundReport, queries: int) -> str:
    over = "" if main.part_queries is None else f", over {count(main.part_queries)} of {plural(queries, 'query')},"
    shared = f"no sharing of round {main.number}{over}"
    bound = f"{shared} can be expected to give more than {expected(main.dual_bound)} correct"
    return _labelled(
        "certificate",
        f"{bound}; this one {expected(main.expected_utility + main.later_utility)} (gap {answers(main.gap)})",
    )


def _price_heading(unit: str) -> str:
    return "price/1,000" if unit == "tokens" else f"price/{'gpu-h' if unit == 'gpu-seconds' else unit}"


def _price_cell(price: float, unit: str) -> str:
    return per_thousand(price) if unit == "tokens" else priced(price, unit).partition(" ")[0]


def _round_table(report: RunReport) -> list[str]:
    """Return one line for each round and a heading; of many rounds the first ones and the last."""
    rounds, unit, is_streamed = report.rounds, report.unit, report.is_streamed
    shown = rounds if len(rounds) <= _MOST_ROUNDS else [*rounds[: _MOST_ROUNDS - 2], rounds[-1]]
    asks_again = any(row.again for row in rounds)
    heading = (
        "round",
        *(["known"] if is_streamed else []),
        _price_heading(unit),
        "new",
        "continued",
        *(["again"] if asks_again else []),
        "granted",
        "spent",
        "ended",
        "correct",
        "expected",
        "time",
    )
    table = [
        (
            "service" if row.is_service else str(row.number),
            *([count(report.known_in(row))] if is_streamed else []),
            _price_cell(row.shadow_price, unit),
            count(row.fresh),
            count(row.continued),
            *([count(row.again)] if asks_again else []),
            count(row.granted_tokens),
            count(row.spent_tokens),
            count(row.finished),
            answers(row.correct),
            expected(row.expected_utility),
            duration(row.seconds),
        )
        for row in shown
    ]
    lines = _aligned([heading, *table])
    if len(shown) < len(rounds):
        left_out = rounds[_MOST_ROUNDS - 2 : -1]
        spent = sum(row.spent_tokens for row in left_out)
        ended = sum(row.finished for row in left_out)
        lines.insert(
            -1, f"  ... {plural(len(left_out), 'round')} more, which spent {count(spent)} and ended {count(ended)}"
        )
    return lines


def _budget_table(plan: PlanReport) -> list[str]:
    """Return one line for each of a few budgets, the plan's own marked."""
    own = {point for point in plan.budget_curve if point.budget_tokens == plan.budget_tokens}
    shown = own | set(_spread(plan.budget_curve, _MOST_BUDGETS))
    points = sorted(shown, key=lambda point: point.budget_tokens)
    heading = ("budget", _price_heading(plan.unit), "funded", "correct", "uniform")
    table = [
        (
            _bare(point.budget_tokens, plan.unit) + ("*" if point.budget_tokens == plan.budget_tokens else " "),
            _price_cell(point.shadow_price, plan.unit),
            count(point.funded),
            expected(point.utility),
            expected(point.uniform_utility),
        )
        for point in points
    ]
    return _aligned([heading, *table])


def _spread(points: Sequence[BudgetPoint], most: int) -> list[BudgetPoint]:
    """Return at most `most` points, evenly spread, with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(step * (len(points) - 1) / (most - 1))] for step in range(most)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines with every column flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
