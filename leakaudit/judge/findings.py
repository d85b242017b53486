"""What each finding is, in a few words, and what mends it: the texts that every output format shares."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from leakaudit.result.schema import Finding

RULES: dict[str, str] = {
    # of the verdict
    "identification-above-limit": "An attack picks out the private record more often than allowed",
    "reconstruction-close": "An attack rebuilds pictures far closer to the private ones than a guess",
    "leak-found": "The audit failed a defense",
    "undecided": "The measurements do not settle whether a defense protects",
    "attack-not-scored": "An attack has no score on some victims",
    "control-does-not-leak": "The attacks were not seen to work without a defense",
    "undefended-leaks": "The undefended model leaks, which shows that the attacks work",
    "accuracy-not-measured": "The accuracy of a defense was not measured",
    "audit-incomplete": "The audit was interrupted",
    # of the gate
    "waiver-expired": "A waiver has expired",
    "waiver-unused": "A waiver matches no check",
    # of the checks before a scan
    "setting-range": "A setting is out of range",
    "batch-larger-than-data": "A batch is larger than the private data",
    "too-few-records": "There are fewer private records than asked for",
    "records-not-used": "Some records do not fill a batch",
    "few-candidates": "A class has few candidates to tell a record from",
    "value-range": "Pixels are not in the expected range",
    "label-range": "A label is out of range",
    "absent-classes": "Some classes have no private record",
    "non-finite-weights": "The model's weights are not finite",
    "batchnorm-untrained": "BatchNorm holds no statistics yet",
    "batchnorm-single-record": "BatchNorm normalises single records",
    "dropout-train-mode": "Dropout hides part of the update from the attacks",
    "memory": "Memory needed by an attack",
    "gradient-fails": "The model gives no gradient",
    "loss-reduction": "The loss grows with the batch",
    "non-finite-gradient": "The loss or its gradient is not finite",
    "gradient-near-zero": "The gradient carries next to nothing",
    "no-gradient": "Some parameters get no gradient",
    "cost": "Time of one step",
    # of the checks of defenses that replace records
    "not-diagnosed": "A check of a defense could not be run",
    "label-stuffing": "Released records teach what does not hold for real ones",
    "collapsed-to-class-conditional": "Released records do not depend on the private record",
    "stale-reference": "Released labels come from an older or weaker model",
    "copies-private-records": "Released pictures are near other private records",
    "bound-exceeded": "An attack exceeds a proven bound",
}

GATE: dict[str, str] = {
    "identification": "how often records may be identified",
    "psnr": "how close reconstructions may come",
    "ssim": "how alike in structure reconstructions may be",
    "lpips": "how alike to the eye reconstructions may be",
    "label-accuracy": "how often labels may be inferred",
    "accuracy": "how accurate the defended model must be",
    "accuracy-loss": "how much accuracy a defense may cost",
    "coverage": "what was audited before must be audited",
    "complete": "the audit must have finished",
    "findings": "how severe findings may be",
}

MENDS: dict[str, str] = {
    "identification-above-limit": "Choose a stronger setting of this defense or another defense, and scan again.",
    "reconstruction-close": "Choose a stronger setting of this defense or another defense, and scan again.",
    "leak-found": "Choose a stronger setting of this defense or another defense, and scan again.",
    "undecided": "Undecided is not safe: scan again with what the sentence asks for, or with more --records.",
    "attack-not-scored": "Mend what the reason names (a larger --budget or --memory, another setting) and scan again.",
    "control-does-not-leak": "Scan with --full, trained weights or more --records until the control leaks.",
    "accuracy-not-measured": "Mend what the reason names and scan again without --no-utility.",
    "audit-incomplete": "Let the scan run to its end, or give it a --budget it can finish in.",
    "waiver-expired": "Mend what it covered, or decide again: a new date and reason, or no waiver.",
    "waiver-unused": "Remove it from pyproject.toml, or mend its rule, defense or attack if it was meant to match.",
    "setting-range": "Give a value within the range.",
    "batch-larger-than-data": "Give a smaller --batch-size or more train_data.",
    "too-few-records": "Give fewer --records or more train_data.",
    "records-not-used": "Make --records a multiple of --batch-size.",
    "few-candidates": "Give more records of this class in train_data or test_data, or fewer --candidates.",
    "value-range": "Set mean and std to what the model's inputs were normalised with, and give pixels in 0 to 1.",
    "label-range": "Give labels from 0 to the number of classes less one.",
    "absent-classes": "Give private records of every class, or leave the classes out.",
    "non-finite-weights": "Load weights of a run that did not diverge.",
    "batchnorm-untrained": "Give trained weights with --checkpoint, or use --mode train with a larger --batch-size.",
    "batchnorm-single-record": "Use --mode eval or a larger --batch-size.",
    "dropout-train-mode": "Scan with --mode eval too.",
    "memory": "Give fewer --records or a smaller --batch-size, or set --memory.",
    "gradient-fails": "Mend the model so that a forward and backward pass runs on a batch.",
    "loss-reduction": "Use the mean over records as the loss.",
    "non-finite-gradient": "Check the loss, the weights and the inputs.",
    "gradient-near-zero": "Scan less trained weights too: a pass here says little about them.",
    "no-gradient": "Freeze parameters that are not used, and scan trained weights too.",
    "not-diagnosed": "Make the defense's record stage bear any records and labels of the data's shape.",
    "label-stuffing": "Do not count the accuracy on released records: train longer, or choose another defense.",
    "collapsed-to-class-conditional": "Declare the defense `renewable` if it is meant to be so.",
    "stale-reference": "Fit the defense with the model that is audited, and scan again.",
    "copies-private-records": "Train the generator so that it does not memorise: fewer steps, or more records.",
    "bound-exceeded": "Do not rely on the proof: find which of its assumptions does not hold.",
}
OTHERWISE = "Settle what this finding says, and scan again."
STRONGER = "Choose a stronger setting or another defense, or waive the check with a reason and a date."
CHEAPER = "Choose a milder setting or a defense that costs less, or waive the check with a reason and a date."
CAUSE = "Find the change that caused it; if it is meant, store this result as the new baseline."

# What to do where a check of the gate does not pass, by the name of its rule: more privacy costs accuracy, and back.
GATE_MENDS: dict[str, str] = {
    **dict.fromkeys(("identification", "psnr", "ssim", "lpips", "label-accuracy"), STRONGER),
    "accuracy": "Choose a milder setting or a defense that costs less, train longer (--epochs), or ask for less.",
    "accuracy-loss": CHEAPER,
    "coverage": "Scan again with every defense and attack that the baseline has, or store a new baseline.",
    "complete": "Let the scan run to its end, or give it a --budget that it can finish in.",
    "findings": "Mend what the finding names, or let less severe ones pass in [tool.leakaudit.assert].",
    "regression-identification": CAUSE,
    "regression-bound": CAUSE,
    "regression-psnr": CAUSE,
    "regression-accuracy": "Find the change that made training or the defense worse; if it is meant, store this result "
    "as the new baseline.",
    "regression-coverage": "Scan again with every defense and attack that the baseline has, or store a new baseline.",
}
# Findings of the audit that a check of the gate judges under another name.
JUDGED_AS = {
    "identification-above-limit": "identification",
    "reconstruction-close": "identification",
    "leak-found": "identification",
    "undecided": "identification",
    "attack-not-scored": "identification",
    "accuracy-not-measured": "accuracy",
    "audit-incomplete": "complete",
}


KEBAB = re.compile(r"[a-z][a-z-]*")


def describe(identifier: str) -> str:
    """Return what a finding is, in a few words, whatever its id; ids of the gate start with `gate-`."""
    if identifier in RULES:
        return RULES[identifier]
    rule = identifier.removeprefix("gate-")
    if rule == identifier:
        return "Noticed by the audit"
    noticed = rule.removeprefix("finding-")
    if noticed != rule:
        return f"Gate check: {RULES.get(noticed, 'what the audit noticed')}"
    changed = rule.removeprefix("regression-")
    if changed != rule:
        return f"Regression check: {GATE.get(changed, changed)}, against the baseline"
    return f"Gate check: {GATE.get(rule, rule)}"


def mend_of(identifier: str) -> str:
    """Return one sentence on what to do about a finding that brings none itself."""
    if identifier in MENDS:
        return MENDS[identifier]
    rule = identifier.removeprefix("gate-")
    if rule == identifier:
        return OTHERWISE
    return GATE_MENDS.get(rule) or MENDS.get(rule.removeprefix("finding-")) or STRONGER


def accepted(finding: Finding) -> bool:
    """Return whether a waiver in force accepts a finding; what is said of waivers themselves is accepted by none."""
    return "waived" in finding.evidence and not finding.id.startswith("waiver-")


def unused_mend(rule: str, rules: Iterable[str]) -> str:
    """Return what to do about a waiver that matches no check, `rules` being the rules of the checks there are.

    Names of other places are recognised (alerts, ids of checks, findings), and typos; a rule that there is has none.
    """
    there_are = set(rules)
    known = sorted(filter(KEBAB.fullmatch, there_are))  # whatever else an outcome of somebody else's calls a rule
    if not known or any(fnmatchcase(name, rule) for name in there_are):
        return MENDS["waiver-unused"]
    name = rule.removeprefix("gate-").partition("/")[0].partition(":")[0]
    near = difflib.get_close_matches(name, [*known, *JUDGED_AS], n=1)
    wanted = (name, f"finding-{name}", JUDGED_AS.get(name), *(JUDGED_AS.get(each, each) for each in near))
    meant = next((each for each in wanted if each in known), "")
    guess = f' Perhaps rule = "{meant}" was meant.' if meant and "*" not in rule else ""
    there = f"the rules are {', '.join(known)}" if len(known) > 1 else f"the only rule is {known[0]}"
    return f'No check here has the rule "{rule}": {there}.{guess} Mend it, or remove the waiver from pyproject.toml.'
