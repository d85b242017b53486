"""What one record's loss did to the logits, read off its update: the residual that gradient matching may hold fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks._labels import Head, find_head, probe_pictures
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.target import PixelModel

OFF = 1e-3  # of the norm of a head's gradient, that may be off rank one before its residual counts as unknown
PROBES = 8  # pictures that the head is looked for with


def residual_loss(logits: Tensor, residual: Tensor) -> Tensor:
    """Return ⟨r, f(x)⟩ of logits (B, K) and residuals (B, K), whose gradient in the logits is r whatever they are."""
    return (logits * residual).sum()


def residuals(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return r = ∂ℓ/∂logits of every victim's one record, (V, 1, K); NaN in rows where it is not known exactly.

    Where it is known of none K may be anything.

    The last layer computes the logits, so that its bias's gradient is r and its weight's r·hᵀ, whatever the loss. It is
    believed where the two together have rank one, as those of one record have. A noisy, pruned or rounded r is worse
    than a candidate's own, so rows that a defense moved are given up: rank one is lost, more than one entry is zero
    (that of a sure record's class is), or all are of one magnitude, as signs are. Without a bias r is the weight's left
    singular vector, of length 1 and with the sign by which its largest entry, that of the true class, is negative; of
    two classes or mixed labels that is not known. Of several local steps every row is NaN.

    Of a model with one output any r has rank one: it is believed, as only its sign says anything of a direction. Where
    labels are no classes nothing tells the sign without a bias.

    Nothing is drawn from `generator`: what is drawn after this does not depend on it.
    """
    nothing = torch.full((update.victims, 1, update.classes), torch.nan, device=update.gradients[0].device)
    if update.batch_size != 1 or not update.is_gradient:  # in later steps p is another
        return nothing
    own = torch.Generator(generator.device).set_state(generator.get_state())
    with client_mode(model, update, own):
        head = find_head(model, update, probe_pictures(update, own, nothing.device, PROBES))
    mixed = update.labels is not None and update.labels.is_floating_point()
    signed = update.task.by_class and not mixed  # the largest entry is then that of the true class
    if head is None or not head.at.direct or (head.bias is None and not signed):
        return nothing
    return read(head, update.gradients)[:, None].to(nothing.dtype)


def read(head: Head, gradients: Gradients) -> Tensor:
    """Return what a head that computes the logits tells of r in updates of one record each, (V, K) as `residuals`.

    Each tensor of `gradients` is (V, *parameter.shape).
    """
    weight, bias = (None if g is None else g.double() for g in head.gradients(gradients))
    assert weight is not None
    classes = weight.shape[1]
    rows = weight if bias is None else torch.cat([weight, bias[..., None]], -1)
    rows = rows / rows.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    powers, turned = torch.linalg.eigh(rows @ rows.mT)
    factor = turned[..., -1] if bias is None else bias
    if bias is None:
        factor = -factor * factor.gather(1, factor.abs().argmax(1, keepdim=True)).sign()
    size = factor.abs()
    exact = (powers[:, :-1].sum(1) <= OFF**2 * powers[:, -1]) & ((size > 0).sum(1) >= min(classes, max(2, classes - 1)))
    if classes > 2:
        exact &= size.amax(1) > size.amin(1) * (1 + OFF)
    if bias is None:  # the sign is known of more than two classes, if the true one's entry is there at all
        exact &= (factor.amax(1) > 0) & (factor.amin(1) < 0) & (classes > 2)
    return torch.where(exact[:, None], factor, torch.nan)
