"""Ridge regression and a trained correction from updates to pictures: what the learned attacks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.labels import class_means
from leakaudit.result.rules import SHARP
from leakaudit.work.memory import need
from leakaudit.work.progress import observe, track

_HELD = 128  # most held-out pairs looked at


@dataclass(frozen=True)
class Ridge:
    """Class means plus a linear map of what was released, fitted in the dual: x̂ = m_y + k(x̃ − m̃_y)·α.

    The first `by_class` entries of x̃ are mapped by each class's own map, the others by one that all classes share:
    k(u)_i = ⟨u, s_i⟩ over the shared entries, plus that over the others where record i is of the class of u.
    """

    means: Tensor  # (K, D) of the private pictures
    released_means: Tensor  # (K, F)
    support: Tensor  # (N, F) released training pictures, centred
    labels: Tensor  # (N,) of the support
    weights: Tensor  # (N, D), zero where only the class means are used
    missed: Tensor  # (N, D): by what the guess for a record of the support would miss it, were it not among them
    shape: tuple[int, ...]  # of a picture
    by_class: int = 0

    def kernel(self, centred: Tensor, labels: Tensor) -> Tensor:
        """Return k (M, N) of centred rows (M, F)."""
        shared = centred[:, self.by_class :] @ self.support[:, self.by_class :].T
        if not self.by_class:
            return shared
        own = centred[:, : self.by_class] @ self.support[:, : self.by_class].T
        return shared + own * (labels[:, None] == self.labels)

    def __call__(self, released: Tensor, labels: Tensor) -> Tensor:
        """Return guesses (N, C, H, W), not clamped."""
        centred = released.flatten(1) - self.released_means[labels]
        return (self.means[labels] + self.kernel(centred, labels) @ self.weights).view(-1, *self.shape)


def fit_ridge(
    released: Tensor,
    private: Tensor,
    labels: Tensor,
    held: Tensor,
    classes: int,
    *,
    by_class: int = 0,
    settled: Tensor | None = None,
) -> Ridge:
    """Fit `Ridge` on the pairs outside `held` (N,) with the penalty, or none of the map, that is best on `held`.

    `released` are rows of any shape, `private` pictures (N, C, H, W). `settled`, of the shape of `released`, are the
    same without noise, where that is known: the map is then fitted on them, and the penalty that is best on the noisy
    held-out rows makes it the Wiener filter, which needs far fewer pairs than learning the noise from them.
    """
    rows, features, pixels = len(released), released[0].numel(), private[0].numel()
    size = 4 * rows * (4 * features + 6 * pixels + 6 * rows)
    need(size, f"a regression on {rows} pairs", "pairs or auxiliary records", private.device)
    x, y, c = (released if settled is None else settled)[~held].flatten(1), private[~held], labels[~held]
    means, released_means = class_means(y, c, classes), class_means(x, c, classes)
    centred, wanted = x - released_means[c], y.flatten(1) - means[c]
    shape = tuple(private.shape[1:])
    ridge = Ridge(means, released_means, centred, c, torch.zeros_like(wanted), wanted, shape, by_class)
    powers, basis = spectrum(ridge.kernel(centred, c))
    rotated = basis.T @ wanted
    seen, truth, told = released[held].flatten(1), private[held].flatten(1), labels[held]
    turned = ridge.kernel(seen - released_means[told], told) @ basis
    least, best = F.mse_loss(means[told], truth), None
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        scale = (powers.clamp_min(0) + penalty * powers.mean().clamp_min(1e-12))[:, None]
        error = F.mse_loss(means[told] + turned @ (rotated / scale), truth)
        if error < least:
            least, best = error, scale
    if best is None:
        return ridge
    weights = basis @ (rotated / best)
    return replace(ridge, weights=weights, missed=weights / (basis.square() @ (1 / best)))  # leave one out, exactly


def spectrum(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (N,), ascending, and eigenvectors (N, N) of a symmetric kernel (N, N).

    Kernels of few features have many equal eigenvalues, at which the solver may not converge in single precision.
    """
    try:
        powers, basis = torch.linalg.eigh(kernel)
    except RuntimeError:  # a LinAlgError; what ran out of memory does so again
        powers, basis = torch.linalg.eigh(kernel.double())
    return powers.to(kernel), basis.to(kernel)


def train_correction(
    network: nn.Module,
    error: Callable[[Tensor], Tensor],
    held_error: Callable[[], Tensor],
    train: Tensor,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    label: str,
) -> dict[str, str]:
    """Train `network` in place by Adam on `error` (of rows drawn from `train`), and leave it where it was best.

    Best is by `held_error`, looked at twenty times, the untrained state included: what corrects nothing untrained is
    not used where it does not help. Return a doubt where what is left fits the pairs of `train` only.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), eta_min=1e-4)
    least, kept = torch.inf, {k: v.clone() for k, v in network.state_dict().items()}
    look = max(1, steps // 20)
    for k in track(label, steps):
        if k % look == 0:
            with torch.no_grad():
                now = float(held_error())
            if now < least:
                least, kept = now, {name: v.clone() for name, v in network.state_dict().items()}
        rows = train[torch.randint(len(train), (batch,), generator=generator, device=generator.device).to(train.device)]
        loss = error(rows)
        observe(loss)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        plan.step()
    with torch.no_grad():
        if float(held_error()) >= least:
            network.load_state_dict(kept)
        return overfitted(float(error(train[:_HELD])), float(held_error()))


def overfitted(trained: float, held: float) -> dict[str, str]:
    """Return a doubt where the error on training pairs is less than half of that on held-out ones, 3 dB (`SHARP`).

    More of what it knows is then by heart than decoded: with more pairs another might decode what this one does not.
    """
    told = f"mean squared error {trained:.2g} on them, {held:.2g} on held-out ones, so that its failure says less"
    return {"overfitted": told} if trained < held * 10 ** (-SHARP / 10) else {}
