"""Checks before a long run: what would stop a scan (`error`), what would make its numbers mislead (`warning`)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.engine.head import find
from leakaudit.errors import Setting, UserError, first_line, message_of, said, worded
from leakaudit.judge.noticed import frozen
from leakaudit.load.chances import chances
from leakaudit.load.second import second
from leakaudit.network.outputs import Main
from leakaudit.protocol.gradients import Mode, in_mode, parameters_of
from leakaudit.protocol.target import Records, Target, shared_parameters
from leakaudit.result.rules import SEVERITIES
from leakaudit.result.schema import Finding, Value
from leakaudit.work.precision import exact
from leakaudit.work.quantities import readable
from leakaudit.work.seeding import seeded

SMALL_GRADIENT = 1e-6  # of the whole update's Euclidean norm; float32 matching objectives drown below it
PROBES = 8  # pictures on which it is looked how labels are told
DOUBLE_BACKWARD = 2.75  # times a training step: the middle of the 2.5–3 measured on common networks


@exact()
def preflight(
    target: Target, *, mode: str, batch_size: int, records: int, candidates: int = 100, costs: bool = False
) -> tuple[Finding, ...]:
    """Check a target against the settings of a scan: `records` victims' records in batches of `batch_size`, in `mode`.

    `candidates` is M, the size of a line-up of same-class records. With `costs` a forward and backward pass is timed
    too; that is off by default because a result must not differ between equal runs. Errors come first.
    """
    findings = [*_counts(target, batch_size, records, candidates), *_values(target), *_weights(target)]
    findings += [*frozen(*shared_parameters(target.model)), *_modules(target, mode, batch_size)]
    if not any(finding.severity == "error" for finding in findings):
        found = _gradient(target, mode, batch_size, records, costs)
        worse = {finding.id for finding in found if finding.severity == "error"}
        findings = [finding for finding in findings if finding.id not in worse] + found
        if not worse:
            findings += [*chances(target, mode), *second(target), *_labels(target, mode)]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def raise_on_errors(findings: Sequence[Finding]) -> None:
    """Raise UserError with the first finding that stops a scan, if there is one."""
    for finding in findings:
        if finding.severity == "error":
            raise UserError(*(_parts(finding.id, finding.evidence) or (finding.message,)))


# Errors whose sentence names settings, by id; of several sentences the one whose values are known.
SENTENCES: dict[str, tuple[str, ...]] = {
    "setting-range": ("{--batch-size} and {--records} must be at least 1.",),
    "batch-larger-than-data": (
        "{--batch-size=} is more than the {private} private records: give a smaller one, or more train_data.",
    ),
    "too-few-records": (
        "{--records=} is more than the {private} private records: give fewer, or more train_data.",
        "{--records=} does not fill one batch of {batch_size}: give at least as many.",
    ),
    "memory": ("one gradient on {batch_size} record(s) does not fit the memory of {device}: give {--device cpu}.",),
    "batchnorm-single-record": (
        "BatchNorm cannot run in train mode on {batch_size} record(s): use {--mode eval} or a larger {--batch-size}.",
    ),
}


def _parts(identifier: str, evidence: Mapping[str, Value]) -> tuple[str | Setting, ...]:
    """Return the sentence of an error in parts, empty for one that names no setting."""
    needs = [Setting(name, value) for name, value in evidence.items()]
    for template in SENTENCES.get(identifier, ()):
        try:
            return worded(template, needs, **evidence)
        except KeyError:  # it tells of something else
            continue
    return ()


def _error(identifier: str, message: str = "", **evidence: Value) -> Finding:
    return Finding(identifier, "error", message or said(_parts(identifier, evidence)), dict(evidence))


def _warning(identifier: str, message: str, **evidence: Value) -> Finding:
    return Finding(identifier, "warning", message, dict(evidence))


def _counts(target: Target, batch_size: int, records: int, candidates: int) -> list[Finding]:
    private = len(target.private)
    if batch_size < 1 or records < 1:
        return [_error("setting-range")]
    if batch_size > private:
        return [_error("batch-larger-than-data", batch_size=batch_size, private=private)]
    if records > private:
        return [_error("too-few-records", records=records, private=private)]
    if records < batch_size:
        return [_error("too-few-records", records=records, batch_size=batch_size)]
    findings = []
    if records % batch_size:
        used = records // batch_size * batch_size
        message = f"--records {records} is no multiple of --batch-size {batch_size}: {used} records are attacked."
        findings.append(_warning("records-not-used", message, records=records, used=used))
    pool = _units_by_class(target)
    present = torch.bincount(target.private.labels, minlength=len(target.classes)) > 0
    alike = not target.task.own_targets  # else a line-up holds the nearest labels, whatever group they are in
    smallest = int(pool[present].min()) if alike else int(pool.sum())
    label = target.classes[int(torch.where(present, pool, pool.max() + 1).argmin())]
    what = f"class {label!r}" if alike else "the data"
    where, those = ("there", "its line-ups") if alike else ("then", "line-ups")
    whose = "records" if target.private.units is None else "records of different units"
    if smallest < 2:
        message = (
            f"{what} has one record (or one person's) in train_data and test_data together: nothing to tell "
            f"it from, so that identification cannot be measured {where}."
        )
        findings.append(_warning("few-candidates", message, candidates=candidates, smallest=smallest))
    elif smallest < candidates:
        message = (
            f"{what} has {smallest} {whose} in train_data and test_data together, fewer than the {candidates} "
            f"candidates asked for: {those} are smaller, and a guess right more often {where}."
        )
        findings.append(_warning("few-candidates", message, candidates=candidates, smallest=smallest))
    return findings + _several(target)


def _units_by_class(target: Target) -> Tensor:
    """Return how many units each class has in private and test records together: the largest line-up it can have."""
    labels = torch.cat([target.private.labels, target.test.labels])
    if target.task.own_targets:  # one of each unit stands in a line-up, whatever group it is in
        labels = torch.zeros_like(labels)
    if target.private.units is not None and target.test.units is not None:
        units = torch.cat([target.private.units, target.test.units])
        pairs = set(zip(labels.tolist(), units.tolist(), strict=True))
        labels = torch.tensor([label for label, unit in pairs if unit >= 0] + labels[units < 0].tolist())
    return torch.bincount(labels, minlength=len(target.classes))


def _several(target: Target) -> list[Finding]:
    """Say that clusters of near-duplicates were found and are taken as units."""
    if not target.near_duplicates:
        return []
    clusters, held = target.near_duplicates
    message = (
        f"{clusters} cluster{'s' * (clusters != 1)} of near-duplicates hold {held} of the private and test records: "
        "each counts as one unit (say, one person), and the unit is what is looked for. `groups` in model.py says "
        "better whose each record is."
    )
    return [Finding("near-duplicates", "info", message, {"clusters": clusters, "records": held})]


def _roles(target: Target) -> tuple[tuple[str, Records], ...]:
    return ("train_data", target.private), ("test_data", target.test), ("auxiliary_data", target.auxiliary)


def _values(target: Target) -> list[Finding]:
    """Check pixel ranges and labels of all records."""
    findings = []
    width = len(target.classes)
    for name, records in _roles(target):
        low, high = float(records.images.min()), float(records.images.max())
        if not (low >= 0 and high <= 1):
            message = f"pixels of {name} span {low:.3g} to {high:.3g}, not 0 to 1: set mean and std."
            findings.append(_error("value-range", message, low=_finite(low), high=_finite(high)))
        outside = (records.labels < 0) | (records.labels >= width)
        if bool(outside.any()):
            position = int(outside.nonzero()[0])
            label = int(records.labels[position])
            message = f"record {position} of {name} has the label {label}: labels run from 0 to {width - 1}."
            findings.append(_error("label-range", message, label=label, classes=width))
    if findings:
        return findings
    mean, std = target.model.mean.cpu(), target.model.std.cpu()
    images = target.private.images
    inputs = ((images - mean) / std).clamp(-1e6, 1e6)
    identity = bool((mean == 0).all() and (std == 1).all())
    low, high = float(inputs.min()), float(inputs.max())
    span = float(images.max() - images.min())
    if not identity and low >= -1e-3 and high <= 1 + 1e-3:
        message = (
            f"mean and std are declared, but what the model is given spans {low:.2g} to {high:.2g} as if it was not "
            "normalised: apply them in the data, or leave them out."
        )
        findings.append(_warning("value-range", message, low=low, high=high))
    elif span < 0.1:
        message = (
            f"the pixels of train_data span only {span:.2g} of the range 0 to 1: check mean, std and the pictures."
        )
        findings.append(_warning("value-range", message, span=span))
    absent = [c for i, c in enumerate(target.classes) if not bool((target.private.labels == i).any())]
    if absent and not target.task.grouped:
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        message = f"{len(absent)} of {width} classes have no private record ({shown})."
        findings.append(_warning("absent-classes", message, absent=len(absent)))
    return findings


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _weights(target: Target) -> list[Finding]:
    named = [*target.model.network.named_parameters(), *target.model.network.named_buffers()]
    bad = [name for name, t in named if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if not bad:
        return []
    message = f"{bad[0]!r} of the model holds NaN or infinity: load weights of a run that did not diverge."
    return [_error("non-finite-weights", message, parameters=len(bad))]


def _modules(target: Target, mode: str, batch_size: int) -> list[Finding]:
    """Check BatchNorm and dropout against the client's mode."""
    findings = []
    norms = [m for m in target.model.modules() if isinstance(m, _BatchNorm)]
    tracked = [m for m in norms if m.running_mean is not None and m.running_var is not None]
    if mode == "eval" and tracked and all(_untrained(m) for m in tracked):
        message = (
            f"the {len(tracked)} BatchNorm layers hold no statistics yet (mean 0, variance 1), so in eval mode they do "
            "not normalise: give trained weights with --checkpoint, or use --mode train with a --batch-size above 1."
        )
        findings.append(_warning("batchnorm-untrained", message, layers=len(tracked)))
    if mode == "train" and norms and batch_size == 1:
        message = (
            f"the {len(norms)} BatchNorm layers normalise each record by itself in train mode at --batch-size 1, as "
            "few real clients do: use --mode eval or a larger --batch-size."
        )
        findings.append(_warning("batchnorm-single-record", message, layers=len(norms)))
    return findings


def _labels(target: Target, mode: str) -> list[Finding]:
    """Say how the labels of an update will be told, where it is not read off a last layer that gives the logits."""
    pictures = target.auxiliary.images if len(target.auxiliary) >= PROBES else target.private.images
    client_mode: Mode = "train" if mode == "train" else "eval"
    try:
        with seeded(0, "head"), in_mode(target.model, client_mode):
            shown = pictures[:PROBES].to(target.device)
            head, outputs = find(target.model, target.loss, shown, by_class=target.task.by_class)
    except Exception:  # user code may raise anything, and labels that cannot be told are found out by who needs them
        return []
    if head is not None and head.direct and (head.plain or not target.task.by_class):
        return []
    if head is not None:
        kind = type(head.layer).__name__
        message = f"labels are read off the gradient of {head.name!r} ({kind}) and through what follows it."
        return [Finding("head-followed", "info", message, {"layer": head.name})]
    group = "label group" if target.task.grouped else "class"
    guessed = f"that of one record by the {group} whose gradient fits best, those of a batch jointly"
    if outputs.dim() > 2:
        message = f"the model gives maps, whose labels no layer's gradient tells, so they are guessed: {guessed}."
        return [Finding("labels-guessed", "info", message, {})]
    message = (
        f"no layer was found that all logits pass through, so labels are guessed: {guessed}. Attacks that need labels "
        "are weaker than on other models."
    )
    return [_warning("no-head", message)]


def _untrained(norm: nn.Module) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and not mean.any() and bool((variance == 1).all())


def _gradient(target: Target, mode: str, batch_size: int, records: int, costs: bool) -> list[Finding]:
    """Compute one update on auxiliary records (private ones where there are too few) and check it."""
    source = target.auxiliary if len(target.auxiliary) >= batch_size else target.private
    # Copies: a view would count as all the records of which it is a part.
    x = source.images[:batch_size].to(target.device, copy=True)
    y = source.taught[:batch_size].to(target.device, copy=True)
    names, parameters = parameters_of(target.model)
    client_mode: Mode = "train" if mode == "train" else "eval"
    saved = _SavedBytes(parameters)
    try:
        with seeded(0, "preflight"), in_mode(target.model, client_mode):
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                logits = target.model(x)
                value = target.loss(logits, y)
            found = torch.autograd.grad(value, parameters, allow_unused=True)
            twice = target.loss(torch.cat([logits, logits]).detach(), torch.cat([y, y]))
            seconds = _step_seconds(target, x, y, parameters) if costs else None
    except torch.OutOfMemoryError:
        return [_error("memory", batch_size=batch_size, device=str(target.device))]
    except Exception as error:  # user code may raise anything
        if mode == "train" and "more than 1 value per channel" in message_of(error):
            return [_error("batchnorm-single-record", batch_size=batch_size)]
        message = (
            f"the model gives no gradient on a batch of shape {tuple(x.shape)} in {mode} mode ({first_line(error)})."
        )
        return [_error("gradient-fails", message)]
    findings = _update(names, found, float(value.detach()), isinstance(target.model.read, Main))
    if abs(float(twice) - float(value.detach())) > 0.1 * abs(float(value.detach())) + 1e-6:
        message = "`loss` grows with the batch: use the mean over records, which is what clients share."
        findings.append(_warning("loss-reduction", message, once=float(value.detach()), twice=float(twice)))
    findings.append(_memory(target, sum(p.numel() for p in parameters), saved.total, records // batch_size))
    if seconds is not None:
        message = (
            f"one forward and backward pass on {batch_size} record(s) takes {seconds:.3g} s, so one iteration of an "
            f"attack (a double backward) about {DOUBLE_BACKWARD * seconds:.2g} s per victim."
        )
        evidence: dict[str, Value] = {"step_seconds": seconds, "double_backward_seconds": DOUBLE_BACKWARD * seconds}
        findings.append(Finding("cost", "info", message, evidence))
    return findings


def _update(names: Sequence[str], found: Sequence[Tensor | None], value: float, several: bool) -> list[Finding]:
    """Check a gradient: reached parameters, finite, large enough. `several`: the loss sees one of several outputs."""
    findings = []
    unreached = [name for name, g in zip(names, found, strict=True) if g is None or not bool(g.any())]
    norm = float(torch.stack([g.norm() for g in found if g is not None] or [torch.zeros(())]).norm())
    if not torch.isfinite(torch.tensor([norm, value])).all():
        message = (
            "the loss or its gradient is not finite on a sample batch: check the loss, the weights and the inputs."
        )
        return [_error("non-finite-gradient", message)]
    if len(unreached) == len(names) or norm < SMALL_GRADIENT:
        message = (
            f"the gradient of a sample batch has norm {norm:.2g}: an update like that carries next to nothing, so a "
            "pass would say little about less trained weights."
        )
        findings.append(_warning("gradient-near-zero", message, norm=norm))
    elif unreached:
        why = "they may lead to outputs that the loss is not given" if several else "freeze what is unused"
        message = (
            f"{len(unreached)} of {len(names)} parameters get no gradient from a sample batch (first: {unreached[0]!r}"
            f"): {why}; where a last layer starts at zero, nothing behind it leaks yet, so scan trained weights too."
        )
        findings.append(_warning("no-gradient", message, parameters=len(unreached), first=unreached[0]))
    return findings


class _SavedBytes:
    """Counts what a forward pass keeps for its backward, each storage once: the activations' memory."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in parameters}  # kept anyway, as themselves or as views
        self.seen: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor

    @property
    def total(self) -> int:
        return sum(self.seen.values())


def _memory(target: Target, parameters: int, activations: int, victims: int) -> Finding:
    """Estimate what gradient matching on a stack of V victims holds at once.

    Weights, then per victim the update, the candidate's gradient and the cotangent, and about three times the
    activations of a forward pass (its own, the gradient's graph, and the second backward). A stack that is too large
    runs in pieces (`leakaudit.work.memory`), so only what one victim and all updates take must fit.
    """
    needed = 4 * parameters * (1 + 3 * victims) + 3 * activations * victims
    least = 4 * parameters * (3 + victims) + 3 * activations
    evidence: dict[str, Value] = {
        "parameters": parameters,
        "activation_bytes": activations,
        "victims": victims,
        "bytes": needed,
    }
    message = f"a stack of {victims} victims on {parameters:,} parameters takes about {readable(needed)}"
    capacity = _capacity(target.device)
    if capacity is not None and least > 0.9 * capacity:
        message += ", more than there is even in pieces: give fewer --records or a smaller --batch-size."
        return Finding("memory", "warning", message, evidence)
    if capacity is not None and needed > 0.9 * capacity:
        message += ", more than there is: gradient matching runs in pieces"
    return Finding("memory", "info", message + ".", evidence)


def _capacity(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _step_seconds(target: Target, x: Tensor, y: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Return the seconds of a warm forward and backward pass: the best of two."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        found = torch.autograd.grad(target.loss(target.model(x), y), parameters, allow_unused=True)
        next(g for g in found if g is not None).sum().item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times)
