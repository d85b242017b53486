"""What each finding is, in a few words, and what mends it: the texts that every output format shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from leakaudit.errors import Spell, as_option, said, worded
from leakaudit.result.schema import Finding, Mend
from leakaudit.result.scores import of_rule

RULES: dict[str, str] = {
    # of the verdict
    "identification-above-limit": "An attack picks out the private record more often than allowed",
    "reconstruction-close": "An attack rebuilds pictures far closer to the private ones than a guess",
    "known-exactly": "Some private records are known exactly",
    "union-above-limit": "All attacks together pick out private records more often than allowed",
    "class-above-limit": "Records of one class are picked out more often than allowed",
    "labels-leak": "Labels can be read off the updates",
    "leak-found": "The audit failed a defense",
    "undecided": "The measurements do not settle whether a defense protects",
    "attack-not-scored": "An attack has no score on some victims",
    "attacks-skipped": "Attacks were skipped, since the verdict was settled",
    "control-does-not-leak": "The attacks were not seen to work without a defense",
    "undefended-leaks": "The undefended model leaks, which shows that the attacks work",
    "accuracy-not-measured": "The accuracy of a defense was not measured",
    "audit-incomplete": "The audit was interrupted",
    "captured-unlike": "A captured update is unlike what its client sends of the records behind it",
    "claim-broken": "A captured update is not what its client claims to send",
    # of the gate
    "waiver-expired": "A waiver has expired",
    "waiver-unused": "A waiver matches no check",
    # of the checks before a scan
    "setting-range": "A setting is out of range",
    "batch-larger-than-data": "A batch is larger than the private data",
    "too-few-records": "There are fewer private records than asked for",
    "quick-fit": "A defense was fitted in short",
    "plugin-left-out": "An installed plug-in could not be used",
    "records-not-used": "Some records do not fill a batch",
    "few-candidates": "A class has few candidates to tell a record from",
    "near-duplicates": "Some records are near-duplicates of others",
    "no-line-up": "Some records have nobody to be told from",
    "value-range": "Pixels are not in the expected range",
    "label-range": "A label is out of range",
    "absent-classes": "Some classes have no private record",
    "non-finite-weights": "The model's weights are not finite",
    "batchnorm-untrained": "BatchNorm holds no statistics yet",
    "batchnorm-single-record": "BatchNorm normalises single records",
    "dropout-train-mode": "Dropout hides part of the update from the attacks",
    "random-model": "The model draws at random in eval mode too",
    "unseeded-model": "The model does not answer the same twice",
    "no-slope": "No slope of the model's gradient reaches the pictures",
    "second-derivative": "The slope of the model's gradient is wrong",
    "frozen-parameters": "A part of the parameters is frozen",
    "head-followed": "Labels are read through what follows the last layer",
    "labels-guessed": "Labels are guessed: the model gives maps",
    "no-head": "Labels are guessed: no layer was found that all logits pass through",
    "memory": "Memory needed by an attack",
    "gradient-fails": "The model gives no gradient",
    "loss-reduction": "The loss grows with the batch",
    "non-finite-gradient": "The loss or its gradient is not finite",
    "gradient-near-zero": "The gradient carries next to nothing",
    "no-gradient": "Some parameters get no gradient",
    "cost": "Time of one step",
    # of what an adversary learns on
    "auxiliary-differs": "Auxiliary records are of another kind than the private ones",
    "auxiliary-few": "There are too few auxiliary records to learn from",
    # of the checks of defenses that replace records
    "not-diagnosed": "A check of a defense could not be run",
    "label-stuffing": "Released records teach what does not hold for real ones",
    "collapsed-to-class-conditional": "Released records do not depend on the private record",
    "stale-reference": "Released labels come from an older or weaker model",
    "copies-private-records": "Released pictures are near other private records",
    "bound-exceeded": "An attack exceeds a proven bound",
}

# What a check of the gate asks that is of no score.
ASKED: dict[str, str] = {
    "coverage": "what was audited before must be audited",
    "complete": "the audit must have finished",
    "captured": "captured updates must be scored against the records behind them",
    "findings": "how severe findings may be",
}

CAUSE = "Find the change that caused it; if it is meant, store this result as the new baseline."

# What to do, by the id of a finding or of a mend. Settings are written as `leakaudit.errors.worded` reads them.
MENDS: dict[str, str] = {
    "identification-above-limit": "Choose a stronger setting of this defense or another defense, and scan again.",
    "reconstruction-close": "Choose a stronger setting of this defense or another defense, and scan again.",
    "known-exactly": "Find how these records get past the defense, or choose another one, and scan again.",
    "union-above-limit": "Choose a stronger setting of this defense or another defense, and scan again.",
    "class-above-limit": "Choose a setting or a defense that protects this class too, and scan again.",
    "leaks-at-stage": "Choose a stronger setting of this defense, or train without sharing that early.",
    "stage-not-reached": "Let the scan run to its end.",
    "undecided-at-stage": "Scan that stage alone ({--stages}) with more {--records}, and mend what it says.",
    "does-not-repeat": "Draw all randomness from the generator given, and keep nothing between calls.",
    "labels-leak": "Count the labels as known to the server, or choose a defense that hides them.",
    "leak-found": "Choose a stronger setting of this defense or another defense, and scan again.",
    "undecided": "Undecided is not safe: scan again with what the sentence asks for, or with more {--records}.",
    "attack-not-scored": "Mend what the reason names (a larger {--budget} or {--memory}, another setting), and scan.",
    "attacks-skipped": "Scan with {--all-attacks}: then none is skipped.",
    "out-of-time": "Scan again with a larger {--budget}.",
    "quick-battery": "Scan with the standard battery.",
    "weak-adversary": "Scan with {--exposure adaptive}.",
    "effort-lowered": "Leave these attacks their effort: name them without settings, or with larger ones.",
    "attacks-left-out": "Scan without {--attack}, so that the whole battery runs.",
    "canary-missed": "Report it, with the versions that the result names: no audit by this installation counts.",
    "canary-unfinished": "Scan again to the end, with a larger {--budget} or none.",
    "control-within-limit": "Scan with {--full}, trained weights or more {--records} until the control leaks more.",
    "not-seen-weakened": "Scan with {--exposure adaptive}, more {--budget} or stages that bear any records.",
    "no-family": "Use a {--batch-size}, a model or an {--exposure} that attacks of this kind can be run with.",
    "malicious-server": "Mend what keeps attacks that change the model from a score, or use {--exposure adaptive}.",
    "no-adaptive-attack": "Scan with {--exposure adaptive}, more {--budget} or a model that such attacks fit.",
    "too-few-scored": "Give as many {--records} as the sentence asks for.",
    "guess-above-limit": "Give more records of each class in train_data or test_data, or more {--candidates}.",
    "limit-of-nothing": "Give a {--max-identification} above 0.",
    "error-noticed": "Mend what the finding of that name says.",
    "control-does-not-leak": "Scan with {--full}, trained weights or more {--records} until the control leaks.",
    "accuracy-not-measured": "Mend what the reason names and scan again without {--no-utility}.",
    "undefended-leaks": "Nothing: a scan whose attacks find nothing here would prove nothing.",
    "audit-incomplete": "Let the scan run to its end, or give it a {--budget} it can finish in.",
    "waiver-expired": "Mend what it covered, or decide again: a new date and reason, or no waiver.",
    "waiver-unused": "Remove it from pyproject.toml, or mend its rule, defense or attack if it was meant to match.",
    "setting-range": "Give a value within the range.",
    "batch-larger-than-data": "Give a smaller {--batch-size} or more train_data.",
    "too-few-records": "Give fewer {--records} or more train_data.",
    "quick-fit": "Scan without {--quick} before its accuracy is judged.",
    "plugin-left-out": "Update or uninstall the package that the finding names.",
    "records-not-used": "Make {--records} a multiple of {--batch-size}.",
    "few-candidates": "Give more records of this class (with `groups`: of others), or fewer {--candidates}.",
    "near-duplicates": "Set `groups` in model.py: one id per record, of the person or site it is from.",
    "no-line-up": "Give more records of these classes in train_data or test_data.",
    "value-range": "Set mean and std to what the model's inputs were normalised with, and give pixels in 0 to 1.",
    "label-range": "Give labels from 0 to the number of classes less one.",
    "absent-classes": "Give private records of every class, or leave the classes out.",
    "non-finite-weights": "Load weights of a run that did not diverge.",
    "batchnorm-untrained": "Give trained weights ({--checkpoint}), or {--mode train} with a larger {--batch-size}.",
    "batchnorm-single-record": "Use {--mode eval} or a larger {--batch-size}.",
    "dropout-train-mode": "Scan with {--mode eval} too.",
    "random-model": "Let the model draw in train mode alone (training=self.training), and scan with {--mode eval}.",
    "unseeded-model": "Let the model draw from torch's generator alone, and in train mode alone.",
    "no-slope": "Let forward keep pictures in the graph: freeze layers by requires_grad_(False), not by torch.no_grad.",
    "second-derivative": "Write the operation's backward with differentiable operations of torch.",
    "frozen-parameters": "Nothing, if it is meant: what is frozen is not shared and keeps its values.",
    "head-followed": "Nothing: labels are told through it.",
    "labels-guessed": "Nothing: it is so of every model that gives maps.",
    "no-head": "Let one last layer, dense or a convolution, give the logits: attacks sure of the labels are stronger.",
    "memory": "Give fewer {--records} or a smaller {--batch-size}, or set {--memory}.",
    "gradient-fails": "Mend the model so that a forward and backward pass runs on a batch.",
    "loss-reduction": "Use the mean over records as the loss.",
    "non-finite-gradient": "Check the loss, the weights and the inputs.",
    "gradient-near-zero": "Scan less trained weights too: a pass here says little about them.",
    "no-gradient": "Give the loss every output, or freeze what is not used; scan trained weights too.",
    "auxiliary-differs": "Give auxiliary_data of the same source as train_data, prepared in the same way.",
    "auxiliary-few": "Give more auxiliary_data, of every class that train_data has.",
    "not-diagnosed": "Make the defense's record stage bear any records and labels of the data's shape.",
    "label-stuffing": "Do not count the accuracy on released records: train longer, or choose another defense.",
    "collapsed-to-class-conditional": "Declare the defense `renewable` if it is meant to be so.",
    "stale-reference": "Fit the defense with the model that is audited, and scan again.",
    "copies-private-records": "Train the generator so that it does not memorise: fewer steps, or more records.",
    "bound-exceeded": "Do not rely on the proof: find which of its assumptions does not hold.",
    # of checks of the gate
    "strengthen": "Strengthen the defense or choose another one (costs: Privacy against accuracy, in the report).",
    "costs-less": "Choose what costs less (Privacy against accuracy, in the report) or train longer.",
    "scan-defense": "Scan the defense ({--defense}), or mend the pattern in [tool.leakaudit.assert].",
    "mend-pattern": "Mend the pattern in [tool.leakaudit.assert].",
    "run-or-mend-pattern": "Run it ({--attack}), or mend the pattern.",
    "run-what-scores": "Run an attack that gives it ({--attack}).",
    "name-what-runs": "Name an attack that can, or leave the rule out.",
    "not-quick": "Scan again without {--quick}.",
    "more-records": "Scan again with {--records=}: so many would settle it if the shares stay.",
    "enough-records": "Scan again with {--records=} or more.",
    "measure": "Scan again so that what the message names is measured.",
    "run-to-end": "Scan again so that these attacks run to their end.",
    "train": "Scan again without {--no-utility}, and with {--seeds=} or more.",
    "train-control": "Train the model without a defense to clearly above chance: more {--epochs}, {--seeds} or data.",
    "train-to-end": "Mend what the reason names, and scan again.",
    "records-for-interval": "An interval takes more records: scan again with {--records=}.",
    "seeds-for-interval": "An interval takes more seeds: scan again with {--seeds=}.",
    "at-threshold": "The value is at the threshold itself: no number of records or seeds settles it. Move it.",
    "records-settle": "If the value stays, it takes about {--records=} to settle it.",
    "seeds-settle": "If the value stays, it takes about {--seeds=} to settle it.",
    "find-change": CAUSE,
    "measure-both": "Scan again so that it is measured on both sides.",
    "rise-too-large": "The rise is itself above what must be ruled out: more records would show a loss, or none.",
    "records-rule-out": "If the shares stay, it takes about {--records=} to settle it.",
    "loss-too-large": "The loss is itself above what must be ruled out: more seeds would show a loss, or none.",
    "ask-for-less": "More than {--seeds=} would be needed: ask for less in [tool.leakaudit.assert.regression].",
    "seeds-rule-out": "It takes about {--seeds=} on either side to settle it.",
    "control-must-leak": "Scan again until the attacks find something without a defense ({--full}, more {--records}).",
    "mend-finding": "Mend what the finding says, or waive it by its rule.",
    "captured-unscored": "Scan again with {--data}: the records that made the captured update, in their order.",
    "captured-unlike": "Give the records that made it ({--data}), or say by leakaudit capture what its client did.",
    "captured-certified": "Choose a stronger setting or another defense, and capture what it sends.",
    "claim-broken": "Find out what the client really runs, mend it, and capture again.",
    "scan-to-end": "Scan again to the end.",
    "scan-too": "Scan it too ({--defense=}), or make a new baseline.",
}
OTHERWISE = "Settle what this finding says, and scan again."
STRONGER = "Choose a stronger setting or another defense, or waive the check with a reason and a date."
CHEAPER = "Choose a milder setting or a defense that costs less, or waive the check with a reason and a date."

# What to do where a check of the gate does not pass, by the name of its rule: more privacy costs accuracy, and back.
GATE_MENDS: dict[str, str] = {
    **dict.fromkeys(("identification", "psnr", "ssim", "lpips", "label-accuracy"), STRONGER),
    "accuracy": "Choose a milder setting or a defense that costs less, train longer ({--epochs}), or ask for less.",
    "accuracy-loss": CHEAPER,
    "captured": "Scan again with {--data}: the records that made the captured update, in their order.",
    "coverage": "Scan again with every defense and attack that the baseline has, or store a new baseline.",
    "complete": "Let the scan run to its end, or give it a {--budget} that it can finish in.",
    "findings": "Mend what the finding names, or let less severe ones pass in [tool.leakaudit.assert].",
    "regression-identification": CAUSE,
    "regression-bound": CAUSE,
    "regression-psnr": CAUSE,
    "regression-accuracy": "Find the change that made training or the defense worse; if it is meant, store this result "
    "as the new baseline.",
    "regression-coverage": "Scan again with every defense and attack that the baseline has, or store a new baseline.",
}


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
        return f"Regression check: {_asked(changed)}, against the baseline"
    return f"Gate check: {_asked(rule)}"


def _asked(rule: str) -> str:
    return ASKED.get(rule) or of_rule(rule).asks or rule


def mend_of(identifier: str) -> str:
    """Return one sentence on what to do about a finding that brings none itself."""
    return said(worded(_template(identifier)))


def mend(wanted: Mend, spell: Spell = as_option) -> str:
    """Return one sentence on what to do, with its settings as `spell` has them; for an id of a later version any."""
    return said(worded(MENDS.get(wanted.id, OTHERWISE), wanted.needs), spell)


def _template(identifier: str) -> str:
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
    """Return what to do about a waiver that matches no check, `rules` being the rules of the checks there are."""
    there_are = set(rules)
    known = sorted(there_are & {*GATE_MENDS, *(f"finding-{each}" for each in RULES)})  # a stored one may hold any text
    if not known or any(fnmatchcase(name, rule) for name in there_are):  # its defense or attack, or nothing is wrong
        return MENDS["waiver-unused"]
    guess = "".join(f' Perhaps rule = "{near}" was meant.' for near in difflib.get_close_matches(rule, known, n=1))
    there = f"the rules are {', '.join(known)}" if len(known) > 1 else f"the only rule is {known[0]}"
    return f'No check here has the rule "{rule}": {there}.{guess} Mend it, or remove the waiver from pyproject.toml.'
