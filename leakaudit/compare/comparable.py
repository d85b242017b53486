"""Whether two results measured the same thing, so that a difference between them is a change."""

from __future__ import annotations

from collections.abc import Mapping

from leakaudit.errors import Setting, Spell, as_option
from leakaudit.result.schema import AuditResult, Value

# A key, and what it is called in a sentence. What is not here may differ: the code and the weights under test, how many
# seeds, the budget, which defenses and attacks, the leakaudit version (noted).
SHAPE = {
    "input_shape": "picture shape",
    "classes": "number of classes",
    "label_groups": "number of label groups",
    "task": "task",
    "model": "model class",
    "parameters": "number of parameters",
    "augment": "augmentation of pictures in training",
}
DATA = {
    "private": "the private records",
    "test": "the test records",
    "auxiliary": "the adversary's own records",
    "victims": "which records are attacked",
    "candidates": "the candidates they are laid beside",
}
MEASUREMENT = {  # empty: a setting of its own, spelled as the surface has it
    "seed": "",
    "records": "",
    "batch_size": "",
    "candidates": "",
    "client": "",
    "stages": "",
    "mode": "",
    "exposure": "",
    "battery": "battery",
    "steps": "number of steps of an attack",
    "restarts": "number of restarts of an attack",
    "tuning_victims": "number of records an attack is tuned on",
    "decoder_steps": "number of steps of a decoder",
    "epochs": "",
    "training_batch_size": "batch size of training",
}
USUAL = {"client": "fedsgd", "augment": "none", "task": "classes"}  # which is not written down
SETTLED = ("client", "mode", "batch_size", "records")  # by a client with local steps, once the model is loaded
VERSIONS = ("leakaudit", "torch", "numpy", "device", "threads")


def differences(before: AuditResult, after: AuditResult) -> tuple[str, ...]:
    """Return a clause for everything that makes two results incomparable, empty where nothing does.

    Compared are the shape of the model, the data by their hashes, the exposure and what was measured how.
    """
    found = []
    if before.schema != after.schema:
        found.append(f"the schema is {before.schema} there and {after.schema} here")
    if before.measure != after.measure:
        found.append(f"models are judged by {before.measure} there and by {after.measure} here")
    found += unlike_target(before, after.target, after.hashes)
    for side, where in ((before, "the baseline"), (after, "this result")):
        if not all(side.hashes.get(key) for key in DATA):
            found.append(f"{where} has no hashes of its data (an older leakaudit wrote it: scan again)")
    for key in sorted(before.exposure.keys() | after.exposure.keys()):
        there_, here_ = before.exposure.get(key), after.exposure.get(key)
        if there_ != here_:
            found.append(f"the exposure {key.replace('_', ' ')!r} is {_word(there_)} there and {_word(here_)} here")
    return (*found, *unlike(before.settings, after.settings))


def unlike_target(before: AuditResult, target: dict[str, Value], hashes: dict[str, str]) -> tuple[str, ...]:
    """Return a clause for everything in which the model's shape or the data, as far as hashed, are others."""
    known = [(name, before.hashes.get(key), hashes.get(key)) for key, name in DATA.items()]
    changed = [name for name, there, here in known if there and here and there != here]
    return (*_unequal(before.target, target, SHAPE), *(f"{name} are others" for name in changed))


def unlike(before: dict[str, Value], after: dict[str, Value], spell: Spell = as_option) -> tuple[str, ...]:
    """Return a clause for every setting of a scan that makes it another measurement, settings spelled by `spell`."""
    return tuple(_unequal(before, after, MEASUREMENT, spell))


def known(before: Mapping[str, Value], planned: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return the settings of a baseline and of a scan that is not begun, without those that are not settled by then.

    A client with local steps settles how many records are behind an update, and how many are attacked.
    """
    unsettled = SETTLED if "client" in before or "client" in planned else ()
    one, other = ({key: value for key, value in each.items() if key not in unsettled} for each in (before, planned))
    return one, other


def remarks(before: AuditResult, after: AuditResult) -> tuple[str, ...]:
    """Return a sentence where versions or the device differ: a change may then be theirs."""
    pairs = [(key, before.environment.get(key), after.environment.get(key)) for key in VERSIONS]
    other = [f"{key} {_word(a)} there, {_word(b)} here" for key, a, b in pairs if a != b]
    return (f"Not measured with the same tools ({'; '.join(other)}): a change may be theirs.",) if other else ()


def _unequal(
    before: dict[str, Value], after: dict[str, Value], names: dict[str, str], spell: Spell = as_option
) -> list[str]:
    found = []
    for key, name in names.items():
        there, here = (values.get(key, USUAL.get(key)) for values in (before, after))
        if there != here:
            what = f"the {name}" if name else spell(Setting(key))
            found.append(f"{what} is {_word(there)} there and {_word(here)} here")
    return found


def _word(value: Value) -> str:
    if value is None:
        return "unknown"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
