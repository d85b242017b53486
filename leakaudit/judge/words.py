"""The words for reasons: every surface renders its own sentences here, none is read back.

A setting's name is spelled as the surface has it: `--records 40` in a terminal, `records=40` in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from leakaudit.errors import Spell, as_option
from leakaudit.judge.captured import BROKEN, CERTIFIED, UNSCORED
from leakaudit.judge.moments import AHEAD, LEAKED, OPEN
from leakaudit.judge.proof import INDEPENDENT
from leakaudit.judge.verdict import DOUBT, LEAKS, SKIPPED, UNFINISHED
from leakaudit.result.numbers import decibels, hits, percent
from leakaudit.result.schema import AttackResult, Estimate, Reason, Value

LONG = 60  # characters that a list of specs may take within a sentence
Words = tuple[str, str]  # what is said, and the detail that a brief version leaves out


def sentences(reasons: Iterable[Reason], spell: Spell = as_option) -> tuple[str, ...]:
    """Return one sentence for each reason; both leaks of one attack share one."""
    return tuple(sentence(together, spell) for together in grouped(reasons))


def grouped(reasons: Iterable[Reason]) -> list[tuple[Reason, ...]]:
    """Return the reasons that one sentence tells, in order."""
    found: list[tuple[Reason, ...]] = []
    for (leak, *_), group in groupby(reasons, key=lambda r: (r.id in LEAKS, r.defense, r.attack)):
        together = tuple(group)
        found += [together] if leak else [(reason,) for reason in together]
    return found


def sentence(reasons: Sequence[Reason], spell: Spell = as_option) -> str:
    """Return the sentence for the reasons of one group, after the defense that they name."""
    about = f"{reasons[0].defense}: " if reasons[0].defense else ""
    return about + "".join(_told(reasons, spell))


def named(specs: Sequence[str], of: int) -> str:
    """Return some of so many defenses by their specs, `a, b and c`; counted where that would be long."""
    words = specs[0] if len(specs) == 1 else f"{', '.join(specs[:-1])} and {specs[-1]}"
    return words if len(specs) == 1 or len(words) <= LONG else f"{len(specs)} of {of} defenses"


def brief(reasons: Sequence[Reason]) -> str:
    """Return the sentence for the reasons of one group without its details and its full stop."""
    return _told(reasons, as_option)[0].rstrip(".")


def _told(reasons: Sequence[Reason], spell: Spell) -> Words:
    first = reasons[0]
    try:
        return _leaks(reasons) if first.id in LEAKS else REASONS.get(first.id, _unheard_of)(first, spell)
    except (KeyError, OverflowError):  # a stored one lacks a fact that its words name, or holds one that none can be
        return _unheard_of(first, spell)


def _leaks(reasons: Sequence[Reason]) -> Words:
    first = reasons[0]
    (head, detail), *others = (_LEAK[reason.id](reason) for reason in reasons)
    rest = detail + "".join(f" and {did}{more}" for did, more in others)
    if first.role == "bound":
        who = f"Bound only: handed the replaced records themselves, {first.attack}"
        return f"{who} {head}", f"{rest}; from an update alone it may be less."
    return f"The attack {first.attack} {head}", f"{rest}."


def singled_out(kind: str, candidates: Value, alike: bool = True) -> str:
    """Return what an attack of this kind did to records that it identified, up to `for`: rebuild or confirm them.

    Results from before the two were kept apart have no kind here, and the words that they had.
    """
    did = {"linkage": "confirmed which of", "reconstruction": "rebuilt enough to tell which of"}.get(kind)
    if did is None:
        return f"picked the right one of {candidates} candidates of the same class for"
    return f"{did} {candidates} candidates {'of the same class' if alike else 'with the nearest labels'} it was for"


def _alike(r: Reason) -> bool:
    """Return whether the candidates of a line-up were of one class."""
    return r.facts.get("alike") is not False


def _identified(r: Reason) -> Words:
    e = _measured(r)
    return (
        f"{singled_out(str(r.facts.get('kind', '')), r.facts['candidates'], _alike(r))} "
        f"{round((e.value or 0.0) * e.n)} of {e.n} records",
        f" (at least {percent(e.low or 0.0)} with 95% confidence; allowed {percent(r.limit or 0.0)})",
    )


def _rebuilt(r: Reason) -> Words:
    return (
        "rebuilds pictures far closer to the private ones",
        f" (median {decibels(_measured(r).value or 0.0)}) than a guess without the update "
        f"({decibels(_number(r, 'guess'))})",
    )


def _unfinished(r: Reason, _: Spell) -> Words:
    why = {
        "adaptive": "was built against this defense but ",
        "bound": "is handed the replaced records but ",
        "works": "works on the undefended model but ",
        "unseen": "may work, as nothing measured without a defense shows otherwise, but ",
    }.get(str(r.facts.get("weight", "")), "")
    lost, detail = r.facts["lost"], "; ".join(filter(None, (ended(str(r.facts["ended"])), str(r.facts["told"]))))
    what = f"has no score on {lost}" if lost else f"was cut short on {r.facts['cut']}"
    hides = ", enough to hide a leak above the limit" if r.facts.get("may_hide") else ""
    return f"The attack {r.attack} {why}{what} of {r.facts['victims']} victims", f" ({detail}){hides}."


def _too_few(r: Reason, _: Spell) -> Words:
    scored = r.facts["scored"]
    return (
        f"Only {scored} {'record was' if scored == 1 else 'records were'} scored: at least {r.facts['least']} are "
        f"needed to show that no more than {percent(r.limit or 0.0)} are identified.",
        "",
    )


def _may_exceed(r: Reason, spell: Spell) -> Words:
    e = _measured(r)
    settles = f"{percent(e.value or 0.0)} were identified, so more records would not make it a pass"
    if r.needs:
        need = r.needs[0]
        settles = f"if the rate stays as it is, about {need.value} records would settle it ({spell(need)})"
    high = "an unknown share" if e.high is None else percent(e.high)
    return (
        f"The attack {r.attack} may identify up to {high} of the records",
        f" (95% confidence), more than the allowed {percent(r.limit or 0.0)}: {settles}.",
    )


def _guess(r: Reason, _: Spell) -> Words:
    return (
        f"Guessing alone is right {percent(_number(r, 'guess'))} of the time with so few candidates, more than the "
        f"allowed {percent(r.limit or 0.0)}: more records{' of the same class' * _alike(r)} are needed.",
        "",
    )


def _within(r: Reason, _: Spell) -> Words:
    handed = ", handed the replaced records" if r.role == "bound" else ""
    lucky = f"; what {r.facts['lucky']} hit, guesses hit too" if r.facts.get("lucky") else ""
    return (
        f"No attack identified more than {percent(_number(r, 'highest'))} of the records with 95% confidence"
        f"{', chance hits apart' if lucky else ''}",
        f" (allowed {percent(r.limit or 0.0)}; the most successful was {r.attack}{handed}, "
        f"{percent(_measured(r).value or 0.0)}{lucky}).",
    )


def _control(r: Reason, _: Spell) -> Words:
    share = percent(_measured(r).value or 0.0)
    return f"The most successful attack on the undefended model, {r.attack}, identified {share}.", ""


def _doubt(r: Reason, _: Spell) -> Words:
    name, told = str(r.facts["doubt"]), r.facts["told"]
    if name in DOUBTS:
        return f"The attack {r.attack} {DOUBTS[name]}", f": {told}."
    return f"A doubt of the attack {r.attack}: {name}", f" ({told})."


def _union(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    return (
        f"All attacks together identified {round((e.value or 0.0) * e.n)} of {e.n} records",
        f" (at least {percent(e.low or 0.0)} with 95% confidence; allowed {percent(r.limit or 0.0)}).",
    )


def _exactly(r: Reason, _: Spell) -> Words:
    rebuilt, confirmed = r.facts["rebuilt"], r.facts["confirmed"]
    known = [(n, how) for how, n in (("rebuilt", rebuilt), ("confirmed", confirmed)) if n]
    did = " and ".join(f"{n} {'' if i else 'was ' if n == 1 else 'were '}{how}" for i, (n, how) in enumerate(known))
    return f"Of {r.facts['asked']} records, {did} exactly", f" ({'; '.join(HOW[how] for _, how in known)})."


def _control_within(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    return (
        f"The strongest attack on the undefended model, {r.attack}, is not shown to exceed the limit",
        f" (at least {percent(e.low or 0.0)} with 95% confidence, the limit is {percent(r.limit or 0.0)}): one as weak "
        "against a defense shows nothing.",
    )


def _not_weakened(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    if e.value is None:
        why = f" ({e.reason.rstrip('.')})" if e.reason else ""
        return (
            f"It was not found out whether an attack works through this defense with its strength turned down{why}.",
            "",
        )
    found = f": at most {percent(e.value)} of the records were identified"
    return f"No attack was seen to work through this defense even with its strength turned down{found}.", ""


def _family(r: Reason, _: Spell) -> Words:
    what = "picks a record out of others" if r.facts["family"] == "linkage" else "draws pictures"
    return f"No attack that {what} was scored: none applies here, or none ended.", ""


def _independent(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    return (
        "All that is shared was the same, bit for bit, whichever record of its class was behind it: nothing but the "
        "class can be told from it"
        if _alike(r)
        else "All that is shared was the same, bit for bit, whichever of two records with near labels was behind it: "
        "no more than what such labels have in common can be told from it",
        f" (tried under many seeds; {r.attack} agrees, {round((e.value or 0.0) * e.n)} of {e.n} records, as guessing "
        "would).",
    )


def _proven(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    return (
        f"It is proven that at most {percent(_number(r, 'bound'))} of the records can be picked out of "
        f"{r.facts['candidates']}, if what the proof assumes holds",
        f" ({r.facts['assumes']}); {r.attack} agrees, {round((e.value or 0.0) * e.n)} of {e.n} records.",
    )


def _unplanted(r: Reason, _: Spell) -> Words:
    if r.facts.get("attacks"):
        return f"Attacks that change the model work on the undefended one and have no score: {r.facts['attacks']}.", ""
    return "No attack that changes the model, as a malicious server may, was seen to work on the undefended model.", ""


def _unscored(r: Reason, _: Spell) -> Words:
    e = _measured(r)
    told = "nothing can be scored on it; its pictures stand by themselves"
    if e.value is None:
        return f"Nobody says which records are behind the captured update: {told}.", ""
    hits = f"{round((e.value or 0.0) * e.n)} of {e.n}"
    same = f"on other records, sent by the same client through the defense that it claims, {r.attack} identified {hits}"
    return f"Nobody says which records are behind the captured update: {told}", f" ({same})."


def _certified(r: Reason, _: Spell) -> Words:
    count = r.facts["pictures"]
    told = "one picture that it proves" if count == 1 else f"{count} pictures that it proves"
    return f"The attack {r.attack} drew {told} to be behind the captured update", "."


def unfinished(ended: Value) -> str:
    """Return that something was not looked for to the end, and what ended it (`Controls.canary_ended`)."""
    why = {"budget": "the time budget was spent", "interrupt": "the scan was interrupted"}[str(ended)]
    return f"not looked for to the end: {why}"


def _listed(text: str) -> Callable[[Reason, Spell], Words]:
    return lambda r, _: (text.format(r.facts["attacks"]), "")


def _stored(r: Reason, _: Spell) -> Words:
    head, mark, rest = str(r.facts["told"]).partition(" (")
    return head, mark + rest


def _unheard_of(r: Reason, _: Spell) -> Words:
    """Return words for a reason that has none here, of a plug-in or another version: its id, what it says of itself."""
    about, told = f" the attack {r.attack}" if r.attack else " the verdict", r.facts.get("told")
    return f"A reason about{about}: {r.id}", f" ({told})." if told else "."


def _plain(text: str) -> Callable[[Reason, Spell], Words]:
    return lambda _, __: (text, "")


HOW = {
    "rebuilt": "a picture closer than an eye can tell, far beyond any guess",
    "confirmed": "what was shared is theirs to the last digits, and no other candidate's",
}
ENDED = {"budget": "out of time", "not-applicable": "not applicable", "out-of-memory": "out of memory"}  # by status
DOUBTS = {"overfitted": "overfitted its training pairs"}  # of an attack, by id


# By id of a reason, its words. An id that is not here has none: `stored` is what another version said.
def _rate_at(r: Reason) -> str:
    if r.measured is None or r.measured.value is None:
        return f" (after {r.facts['epochs']} epochs)."
    return f" (after {r.facts['epochs']} epochs {r.attack} identified {hits(r.measured)} records)."


REASONS: dict[str, Callable[[Reason, Spell], Words]] = {
    UNFINISHED: _unfinished,
    "control-not-scored": _plain(
        "No attack that identifies records could be scored on the undefended model, so nothing shows that these "
        "attacks work at all."
    ),
    "control-does-not-leak": _plain(
        "No attack is shown to beat guessing on the undefended model, so attacks that fail here prove nothing."
    ),
    "no-adaptive-attack": _plain(
        "No attack built against this defense was scored, so it has not been tested in earnest."
    ),
    "no-bound": _plain(
        "No attack was scored that is handed the replaced records themselves, so nothing bounds what an update made "
        "from them reveals."
    ),
    "no-attack-scored": _plain("No attack that identifies records was scored on this defense."),
    "guess-above-limit": _guess,
    "limit-of-nothing": _plain("No number of records can show that identification never happens: allow more than 0%."),
    "too-few-scored": _too_few,
    "may-exceed-limit": _may_exceed,
    DOUBT: _doubt,
    "union-above-limit": _union,
    "class-above-limit": lambda r, s: (
        f"Of the {'class' if _alike(r) else 'label'} {r.facts['class']}: {_union(r, s)[0]}",
        _union(r, s)[1],
    ),
    "does-not-repeat": _plain(
        "What this defense makes of a record is not the same again under the same seed: it keeps a state, or draws "
        "what no seed governs, so that trying it on candidates tells little."
    ),
    "known-exactly": _exactly,
    "control-within-limit": _control_within,
    "not-seen-weakened": _not_weakened,
    SKIPPED: lambda r, _: (
        f"Attacks were skipped, since {r.attack} had settled the verdict at the limit of the scan",
        f" ({r.facts['attacks']}): what they would have found is not known.",
    ),
    "no-family": _family,
    "error-noticed": lambda r, _: ("A check of this defense found an error", f" ({r.facts['finding']})."),
    INDEPENDENT: _independent,
    "proven": _proven,
    "within-limit": _within,
    "control-leaks": _control,
    "quick-battery": _plain(
        "Nothing leaked in the quick battery, which is a first look: a pass needs the standard one, or a proof."
    ),
    "weak-adversary": _plain(
        "The adversary of this scan does not know the defense, or owns no records: a pass needs the adaptive one, "
        "which does."
    ),
    "effort-lowered": _listed("Less effort than the battery's was given to: {}."),
    "attacks-left-out": _listed("Attacks of the battery did not run: {}."),
    "canary-missed": lambda r, _: (
        "A leak that the audit plants in every scan was not found, so that it cannot be relied upon",
        f" ({r.facts['told']}).",
    ),
    "canary-unfinished": lambda r, _: (
        f"The leak that the audit plants in every scan was {unfinished(r.facts['ended'])}",
        ", so that what was not found here counts for nothing.",
    ),
    "auxiliary-differs": _plain(
        "The adversary's own records are of another kind than the private ones, so that attacks which learn on them "
        "prove little."
    ),
    "auxiliary-few": _plain("The adversary owns too few records, so that attacks which learn on them prove little."),
    "malicious-server": _unplanted,
    LEAKED: lambda r, _: (
        f"At the stage {r.facts['stage']} of training the audit found a leak",
        _rate_at(r),
    ),
    AHEAD: lambda r, _: (f"The stage {r.facts['stage']} of training was not reached", "."),
    OPEN: lambda r, _: (
        f"At the stage {r.facts['stage']} of training nothing is settled",
        _rate_at(r),
    ),
    "not-applied": lambda r, _: (f"the defense could not be applied: {r.facts['told']}", ""),
    "nothing-audited": _plain("No requested defense was audited to the end."),
    "interrupted": _plain("The audit did not finish: what is here was measured, the rest was not."),
    "stored": _stored,
    UNSCORED: _unscored,
    CERTIFIED: _certified,
    BROKEN: _plain("The captured update is not what its client claims to send."),
}
_LEAK: dict[str, Callable[[Reason], Words]] = {LEAKS[0]: _identified, LEAKS[1]: _rebuilt}


def ended(counted: str) -> str:
    """Return `8 budget, 4 failed` in words: how many victims ended how."""
    parts = (part.partition(" ") for part in counted.split(", "))
    return ", ".join(f"{n}{gap}{ENDED.get(status, status)}" for n, gap, status in parts)


def notes_of(attack: AttackResult) -> tuple[str, ...]:
    """Return what a reader must know to weigh the scores of an attack, one sentence each."""
    return (*(f"{DOUBTS.get(name, name)}: {told}" for name, told in attack.doubts.items()), *attack.notes)


def _measured(reason: Reason) -> Estimate:
    return reason.measured or Estimate()


def _number(reason: Reason, name: str) -> float:
    value = reason.facts.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
