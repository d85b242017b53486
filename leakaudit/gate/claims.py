"""What a result says of itself beside its scores: settings, hashes, who was attacked by what, sentences, findings.

Two kinds of checks. Some hold whichever version made the result: equal things must be equal, counts must be counts. The
others compute again what this version writes, so they are asked of its own results alone (`current`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from leakaudit.compare.comparable import SETTLED
from leakaudit.errors import FLAGS, Setting, UserError, as_option, sentence
from leakaudit.gate.moments import moments, without_attacks
from leakaudit.gate.records import without_line_up
from leakaudit.judge.captured import BROKEN, broken_claims
from leakaudit.judge.noticed import auxiliary_differs, auxiliary_few, exceeded, frozen, no_line_up
from leakaudit.judge.scope import assumptions, left_out, not_tested, roles, specs_of, whole
from leakaudit.judge.settled import settled
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.adversary import GRANTED, PRESETS
from leakaudit.result.batteries import BATTERIES, FIXED, TRAINING_BATCH
from leakaudit.result.dates import is_moment
from leakaudit.result.digests import of_values
from leakaudit.result.federation import client_of, parse_client
from leakaudit.result.rules import BESIDES, LOCAL, OTHER_WORK, PLANTING, VERDICTS
from leakaudit.result.schema import AuditResult, DefenseResult, Examined, Reason
from leakaudit.result.signature import is_digest
from leakaudit.result.specs import apart, split
from leakaudit.result.surfaces import GENERATIVE
from leakaudit.version import __version__

HASHES = ("model", "private", "test", "auxiliary", "victims", "candidates", "configuration", "environment")
# Options of a scan that stand in its settings as they are given, and flags that stand for a value of one.
COMMANDED = {
    as_option(Setting(name)): name
    for name in (
        "records", "batch_size", "candidates", "max_identification", "max_accuracy_loss", "mode", "exposure", "seeds",
        "epochs", "images", "seed",
    )
}  # fmt: skip
FLAGGED = {flag: (setting.name, setting.value) for flag, setting in FLAGS.items() if setting.value is not None}
ROUNDING = 1e-9  # 49 · (1/49) is less than 1 in floating point
WORDS = {"configuration": "its settings", "environment": "the versions it names"}


def current(result: AuditResult) -> bool:
    """Return whether this version made a result, so that it must hold and say what this version makes of its values."""
    return bool(result.made) and result.environment.get("leakaudit") == __version__


def claims(result: AuditResult) -> Iterator[str]:
    """Yield a clause for each thing that a result says of itself and its other values do not give."""
    if result.made and not is_moment(result.made):
        yield f"its date is none ({result.made[:40]})"
    if result.known and not result.made:
        yield "the date is missing: what knew how to write the rest of it wrote one"
    yield from _settings(result)
    yield from _captured(result)
    yield from _hashes(result)
    yield from _command(result)
    yield from _rows(result)
    if current(result):
        yield from _battery(result)
        yield from _canary(result)
        yield from _sentences(result)
        yield from _findings(result)
        for defense in result.defenses:
            yield from (f"{defense.spec}: {what}" for what in (*_verdict(result, defense), *_attacks(result, defense)))
        yield from moments(result)
        yield from _overall(result)


def _settings(result: AuditResult) -> Iterator[str]:
    """Yield where what stands in the settings stands otherwise elsewhere."""
    settings = result.settings
    twice = (
        ("max_identification", result.max_identification, "the limit on identification"),
        ("images", result.images, "how pictures are shown"),
        ("exposure", result.exposure.get("preset"), "the exposure"),
    )
    for name, value, what in twice:
        if name in settings and settings[name] != value:
            yield f"{what} is {value} in the result and {settings[name]} in its settings"
    preset = PRESETS.get(str(result.exposure.get("preset")))
    uncaptured = {"buffers"} if result.captured else set()  # statistics that nobody captured
    wrong = [n for n in GRANTED if n in result.exposure and preset is not None and n not in uncaptured]
    wrong = [name for name in wrong if bool(result.exposure[name]) is not (name in (preset or ()))]
    if wrong:
        yield f"its exposure is called {result.exposure.get('preset')}, which differs in {', '.join(wrong)}"
    try:
        parse_client(str(settings.get("client") or "fedsgd"))
    except UserError as error:
        yield f"its client is none ({sentence(error)})"
    if "records" in settings and whole(settings, "records") > (whole(result.target, "private_records") or 10**9):
        yield "more records were attacked than there are private ones"
    tested = whole(result.target, "test_records")
    if (
        result.measure == "accuracy"
        and tested
        and not abs(result.chance_accuracy * tested - round(result.chance_accuracy * tested)) < 1e-6
    ):
        yield f"no class can hold a share of {result.chance_accuracy} of {tested} test records"
    if bool(result.stand_in) is not (result.images == "redacted") and (result.made or result.stand_in):
        yield "what it says of stand-in pictures does not fit how pictures are shown"
    shown = [p for d in result.defenses for a in d.attacks for p in a.gallery]
    tried = [each for d in result.defenses for a in d.attacks for each in a.captured]
    if result.images != "full" and any(each.pictures for each in tried):
        yield "it says that it shows no picture of what was captured, and holds some"
    if result.images == "none" and any(p.original or p.shared or p.reconstruction for p in shown):
        yield "it says that it shows no picture, and holds some"


def _captured(result: AuditResult) -> Iterator[str]:
    """Yield where what is said of captured updates is said otherwise elsewhere."""
    captured, settings = result.captured, result.settings
    if not captured:
        if result.claims or any(a.captured for d in result.defenses for a in d.attacks):
            yield "it holds what was made of captured updates, and does not say that any were"
        return
    size, client = whole(captured, "records"), client_of(settings)
    if size != whole(settings, "batch_size"):
        yield "its captured updates are of other records than its batches"
    if captured.get("known") and whole(settings, "records") * client.rounds != size * whole(captured, "updates"):
        yield "the records behind its captured updates are not those that were attacked"
    if str(captured.get("defense")) not in {d.spec for d in result.defenses} and result.complete:
        yield "the defense of its captured updates has no row"
    if any(a.captured for d in result.defenses for a in d.attacks) and captured.get("known"):
        yield "what attacks made of captured updates has no score, although their records are known"
    if parse_client(str(captured.get("client") or "fedsgd")) != client:
        yield "its captured updates are of another client than its settings say"


def _hashes(result: AuditResult) -> Iterator[str]:
    try:
        given = of_values(result.settings, result.environment)
    except ValueError:  # a number that is none
        given = {}
    for name, value in given.items():
        if result.hashes.get(name, value) != value:
            yield f"the hash of {WORDS[name]} is not the one that it holds"
    if current(result) and any(not is_digest(result.hashes.get(name, "")) for name in HASHES):
        yield "a hash of what it was made of is missing, or is none"


def _command(result: AuditResult) -> Iterator[str]:
    """Yield where the command that it says it is of asked for something else than its settings say."""
    words = apart(str(result.environment.get("command") or ""))
    if words[:2] != ["leakaudit", "scan"]:
        return
    words = [part for word in words for part in _parted(word)]
    settings = result.settings
    if ("--update" in words) is not bool(result.captured):
        yield "the command and the result do not agree whether captured updates were audited"
    elif result.captured and bool(result.captured.get("known")) is not ("--data" in words):
        yield "the command and the result do not agree whether the records behind captured updates are known"
    pairs = list(pairwise(words))
    given = {word: value for word, value in pairs if word in COMMANDED}  # of an option given twice the last counts
    for word, value in given.items():
        if COMMANDED[word] in SETTLED and (settings.get("client") or result.captured):
            continue  # the client settles them, or what it was captured to have sent
        stored = result.settings.get(COMMANDED[word])
        if stored is not None and str(stored) != value and _number(value) != stored:
            yield f"the command says {word} {value}, and its settings say {stored}"
    said = dict(pairs)
    if "--client" in said and client_of({"client": said["--client"]}) != client_of(settings):
        yield f"the command says --client {said['--client']}, and its settings say {settings.get('client', 'fedsgd')}"
    stages = {part.strip() for part in said.get("--stages", "").split(",")} - {""}
    if "--stages" in said and stages != {*specs_of(settings, "stages")}:
        yield f"the command says --stages {said['--stages']}, and its settings say {settings.get('stages', 'none')}"
    for word, (name, meant) in FLAGGED.items():
        if word in words and settings.get(name, meant) != meant:
            yield f"the command says {word}, and its settings say {name} {settings[name]}"
    if settings.get("budget", 0) is None and "--budget" in words:
        yield "the command says --budget, and its settings know none"
    attacks = [value for word, value in pairs if word in ("-a", "--attack")]
    if "attacks" in settings and not set(attacks) <= set(specs_of(settings, "attacks")):
        yield "the command asks for an attack, and its settings do not"
    asked = [value for word, value in pairs if word in ("-d", "--defense") and value != "none"]
    lost = [spec for spec in asked if spec not in specs_of(result.settings, "defenses")]
    if lost and "defenses" in result.settings:
        yield f"the command asks for {lost[0]}, and its settings do not"


def _parted(word: str) -> list[str]:
    """Return an option and its value where one word holds both: `--records=8`, `-dclip`."""
    if word.startswith("--"):
        return word.split("=", 1)
    return [word[:2], word[2:]] if word[:2] in ("-d", "-a") and len(word) > 2 else [word]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _rows(result: AuditResult) -> Iterator[str]:
    """Yield what the defenses' rows do not say as the settings have it."""
    asked = specs_of(result.settings, "defenses")
    for d in result.defenses:
        if "defenses" in result.settings and d.requested is not (d.spec in asked or set(asked) <= {"none"}):
            yield f"whether {d.spec} was asked for is not what the settings say"
        if "utility" in result.settings and not result.settings["utility"] and (d.accuracies or d.accuracy.n):
            yield f"{d.spec} has an accuracy, though training runs were switched off"
        if result.complete and d.accuracy.reason == "not measured yet":
            yield f"the audit says that it is complete, but the accuracy of {d.spec} was never reached"
        if "seeds" in result.settings and len(d.accuracies) > whole(result.settings, "seeds"):
            yield f"{d.spec} has more training runs than there are seeds"
        for bound in d.guarantees:
            # Guessing picks one of M out with probability 1/M, whatever is hidden: no proof goes below that.
            share = bound.identification
            if share is not None and not 1 - ROUNDING <= bound.candidates * share <= bound.candidates:
                yield f"{d.spec} has a proven bound that none can be"
    if len({d.spec for d in result.defenses}) < len(result.defenses):
        yield "a defense has two rows"
    if result.complete and any(r.id == "interrupted" for r in result.why):
        yield "it says that it is complete, and that it was interrupted"


def _battery(result: AuditResult) -> Iterator[str]:
    """Yield where the effort is not the battery's, or controls do not say what was left out or lowered."""
    settings, controls = result.settings, result.controls
    battery = BATTERIES.get(str(settings.get("battery")))
    if battery is None or controls is None or not result.known:
        yield "it does not say what an audit of this version says: its battery, its controls, the attacks it knew"
        return
    other = [name for name in FIXED if settings.get(name) != getattr(battery, name)]
    other += ["training_batch_size"] if settings.get("training_batch_size") != TRAINING_BATCH else []
    if other:
        yield f"its battery is called {settings['battery']}, which differs in {', '.join(other)}"
    specs = specs_of(settings, "attacks")
    missing = left_out(str(settings["battery"]), (split(spec)[0] for spec in specs))
    of_files = any(".py" in split(spec)[0] for spec in specs)  # nobody knows by its path which attack a file holds
    if controls.left_out != missing and not (of_files and set(controls.left_out) <= set(missing)):
        yield f"the attacks of the battery that did not run are {', '.join(missing) or 'none'}, which it does not say"
    turned = {split(spec)[0] for spec in specs if split(spec)[1]}
    if not of_files and not set(controls.lowered) <= turned:
        yield "it says of attacks that they ran with less effort which ran with the battery's"
    weaker = [split(spec)[0] for spec in battery.attacks if _less(result, split(spec)[0], specs)]
    if not set(weaker) <= set(controls.lowered):
        yield f"{', '.join(weaker)} ran with less effort than the battery gives, which it does not say"


def _canary(result: AuditResult) -> Iterator[str]:
    """Yield where what is said of the planted leak is not what happened there, as it is told."""
    controls = result.controls
    told = controls.canary_told if controls else ""
    verdicts = [verdict for verdict in VERDICTS if f"({verdict})" in told]
    if controls and controls.canary_ended and controls.canary != "inconclusive":
        yield "the planted leak was not looked for to the end, and is said to be decided"
    if controls and controls.canary and verdicts and controls.canary not in verdicts:
        yield f"the planted leak is said to be a {controls.canary}, and told as another ({told})"


def _weakened(result: AuditResult, defense: DefenseResult, examined: Examined) -> Iterator[str]:
    """Yield where the strength at which an attack was seen to work is none at which it was."""
    found, limit = examined.weakened, result.max_identification
    if examined.strength is None:
        return
    if (found.low or 0.0) <= limit or not 0 < examined.strength <= 1:
        yield "an attack is said to have been seen to work, and identified no more than the limit there"
    if not set(examined.changes) - BESIDES:
        yield "an attack is said to have been seen to work through it, and it is said to change nothing"
    full = [a for a in defense.attacks if a.role == "adaptive" and a.identification == found]
    if examined.strength == 1 and not full:
        yield "an attack is said to have been seen to work at full strength, and none of its attacks did"


def _less(result: AuditResult, name: str, specs: tuple[str, ...]) -> bool:
    """Return whether a spec gives an attack less than the battery's own steps, restarts or decoder steps."""
    for own in (split(spec)[1] for spec in specs if split(spec)[0] == name):
        for setting, _, text in (pair.partition("=") for pair in own.split(":")):
            usual = result.settings.get(setting.strip().replace("-", "_")) if setting.strip() in FIXED else None
            if isinstance(usual, int) and text.strip().isdecimal() and int(text) < usual:
                return True
    return False


def _sentences(result: AuditResult) -> Iterator[str]:
    """Yield where what every number stands beside, or what was not tested, is not what its values give."""
    given = assumptions(result.settings, result.exposure, result.target)
    if result.assumptions[: len(given)] != given:
        at = next((i for i, s in enumerate(given) if i >= len(result.assumptions) or result.assumptions[i] != s), 0)
        yield f"its assumptions are not those of its settings, which give: “{given[at]}”"
    untested = not_tested(result.defenses, result.known, result.settings)
    if result.not_tested != untested:
        lost = [s for s in untested if s not in result.not_tested]
        told = f"which give: “{lost[0]}”" if lost else "which give fewer"
        yield f"what it says was not tested is not what its attacks give, {told}"


def _findings(result: AuditResult) -> Iterator[str]:
    """Yield where a finding that follows from the numbers is missing, or one is there that does not."""
    records, size = whole(result.settings, "records"), whole(result.settings, "batch_size")
    shared, parameters = (whole(result.target, name) for name in ("shared_parameters", "parameters"))
    expected = {
        "auxiliary-differs": auxiliary_differs(result.controls.auxiliary) if result.controls else (),
        "frozen-parameters": frozen(shared, parameters),
    }
    expected |= {BROKEN: broken_claims(result.claims, str(result.captured.get("defense")))} if result.captured else {}
    alone = without_line_up(result)
    if alone is not None:
        expected["no-line-up"] = no_line_up(alone, records)
    if result.complete:
        bounds = [exceeded(d.spec, d.guarantees, d.attacks, size) for d in result.defenses]
        expected["bound-exceeded"] = tuple(finding for found in bounds for finding in found)
    for name, given in expected.items():
        stored = tuple(f for f in result.findings if f.id == name)
        if stored != given:
            told = f"which give: “{given[0].message}”" if given else "which give none"
            yield f"the finding {name} is not that of its numbers, {told}"
    few, own = [f for f in result.findings if f.id == "auxiliary-few"], whole(result.target, "auxiliary_records")
    if (result.exposure.get("auxiliary") and auxiliary_few(own) and not few) or any(
        f.evidence.get("records") != own or not auxiliary_few(own, ("",) * whole(f.evidence, "missing")) for f in few
    ):
        yield f"the finding auxiliary-few does not fit {own} auxiliary records"


def _verdict(result: AuditResult, defense: DefenseResult) -> Iterator[str]:
    """Yield where a verdict, or the reasons for it, are not what judging the numbers again gives."""
    if not defense.attacks and any(r.id == "not-applied" for r in defense.why):
        if not without_attacks(result, defense):
            yield "it could not be applied, which is inconclusive for the reason that it holds and no other"
        return
    verdict, why = rejudge(result, defense)
    if defense.verdict != verdict:
        yield f"its verdict is {defense.verdict}, its own numbers give {verdict}"
    elif defense.why != why:
        yield f"the reasons of its verdict are not those that its numbers give: {_told(why, defense.why)}"
    elif defense.reasons != sentences(why):
        yield "the sentences of its reasons are not what its reasons say"


def _told(given: tuple[Reason, ...], stored: tuple[Reason, ...]) -> str:
    """Return the first reason that a result should have and has not, or has and should not."""
    lost = [r for r in given if r not in stored]
    if lost:
        return f"“{sentences(lost[:1])[0]}” is missing"
    more = [r for r in stored if r not in given]
    return f"“{sentences(more[:1])[0]}” is not among them" if more else "their order is another"


def _overall(result: AuditResult) -> Iterator[str]:
    verdict, why = overall(result.defenses) if result.complete else ("inconclusive", (Reason("interrupted"),))
    if result.verdict != verdict:
        yield f"its verdict is {result.verdict}; from its defenses follows {verdict}"
    elif result.why != why or result.reasons != sentences(why):
        yield "the reasons of its verdict are not those of its defenses"


def _runs_all(result: AuditResult) -> bool:
    return result.settings.get("all_attacks") is True or result.settings.get("battery") == "full"


def _attacks(result: AuditResult, defense: DefenseResult) -> Iterator[str]:
    """Yield where the attacks on a defense, or their roles, are not those that must run on what it changes."""
    if defense.examined is None:
        if not any(r.id == "not-applied" for r in defense.why):
            yield "it does not say what was examined"
        return
    ran = [split(spec)[0] for spec in specs_of(result.settings, "attacks")]
    planting = bool(result.exposure.get(PLANTING))
    known = [k for k in result.known if planting or PLANTING not in k.requires or k.name in ran]
    known = [k for k in known if "generator" in result.hashes or GENERATIVE not in k.covers or k.name in ran]
    seen = {*defense.examined.changes, *([LOCAL] if client_of(result.settings).local else [])}
    due = roles([n for n in ran if ".py" not in n], known, seen, defense.adaptive)
    names = [a.name for a in defense.attacks]
    lost = [name for name in due if name not in names]
    if lost and result.complete:
        yield f"{', '.join(lost)} had to run on it, and did not"
    for a in defense.attacks:
        role = due.get(a.name) or ("bound" if "released" in a.requires else "standard")  # of a file: the user chose it
        if a.role != role:
            yield f"{a.name} has the role {a.role}; as what it is, it has the role {role}"
    skipped = [a.name for a in defense.attacks if a.settled_by]
    if skipped and (defense.spec == "none" or not settled(defense.why) or _runs_all(result)):
        yield f"{', '.join(skipped)} had to run on it, and is said to be skipped"
    tuned = [a.name for a in defense.attacks if any(a.settings.get(n, v) != v for n, v in a.tuned.items())]
    if tuned:
        yield f"what {', '.join(tuned)} was tuned to is not among the settings it ran with"
    yield from _weakened(result, defense, defense.examined)
    there = {k.name: k for k in result.known}
    wrong = [a.name for a in defense.attacks if a.name not in there or set(a.requires) != set(there[a.name].requires)]
    if wrong:
        yield f"what {', '.join(wrong)} needs is not what it says of the attacks that it knew"
    if any(a.name in OTHER_WORK for a in defense.attacks):
        yield "what is no attack is called one"
