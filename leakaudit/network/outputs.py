"""What a network returns: tensors by name, the one that is the prediction, and all of them in one tensor for a loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

Named = int | str | Callable[[Any], Tensor] | None  # which of several outputs is meant
Place = tuple[Any, ...]


def tensors_of(output: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Yield the tensors of an output with their places: keys of mappings, numbers in tuples, names of fields."""
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, Mapping | tuple | list) or not place:
        for name, part in _parts(output):
            yield from tensors_of(part, (*place, name))


def _parts(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple | list):
        return list(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):  # also one with slots
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def said(place: Place) -> str:
    """Return a place as it is shown: `[1]`, `'logits'`."""
    return "".join(f"[{name}]" if isinstance(name, int) else repr(name) for name in place)


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model output that is a tensor, or holds one as `logits` or as its only tensor.

    Outputs whose names begin with "aux" are auxiliary heads' and do not count. Raises TypeError for anything else:
    which of several outputs the loss is of is never guessed.
    """
    if isinstance(output, Tensor):
        return output
    tensors = dict(tensors_of(output))
    if ("logits",) in tensors:
        return tensors["logits",]
    main = [tensor for place, tensor in tensors.items() if not str(place[0]).startswith("aux")]
    if len(main) != 1:
        raise TypeError(f"the model returned {type(output).__name__}, not a tensor of logits")
    return main[0]


def main_of(output: Any, named: Named = None) -> Tensor:
    """Return the output that is `named`: by its place, its key or attribute, or a function of the whole output.

    A tensor is what it is, also where a number or a name is given: models give more in train mode alone. Raises
    TypeError where there is no such tensor.
    """
    found: Any = output
    if callable(named):
        found = named(output)
    elif named is None:
        return logits_of(output)
    elif not isinstance(output, Tensor):
        found = dict(_parts(output)).get(named)
        if found is None and isinstance(named, int) and not isinstance(output, Mapping):
            found = dict(enumerate(part for _, part in _parts(output))).get(named % max(1, len(_parts(output))))
    if not isinstance(found, Tensor):
        raise TypeError(f"the model returned {type(output).__name__}, which has no output {named!r}")
    return found


@dataclass(frozen=True)
class Main:
    """Reads the main output, which is all that the loss sees."""

    named: Named = None

    def __call__(self, output: Any) -> Tensor:
        """Return the main output of what a network returned."""
        return main_of(output, self.named)


@dataclass(frozen=True)
class Whole:
    """Reads all outputs, for a loss that takes them: rows (N, total), those of the main output first.

    What is one tensor stays it.
    """

    named: Named = None

    def main(self, output: Any) -> Tensor:
        """Return the main output."""
        return main_of(output, self.named)

    def __call__(self, output: Any) -> Tensor:
        """Return all outputs of what a network returned in one tensor."""
        if isinstance(output, Tensor):
            return output
        main = self.main(output)
        rest = [tensor for _, tensor in tensors_of(output) if tensor is not main]
        return torch.cat([tensor.flatten(1).to(main.dtype) for tensor in (main, *rest)], 1)


@dataclass(frozen=True, eq=False)
class Layout:
    """How outputs lie in the rows that `Whole` makes of them; `output` is one that shows the form, of any records."""

    output: Any
    main: Tensor

    @property
    def parts(self) -> list[Tensor]:
        """The tensors in the order of `tensors_of`."""
        return [tensor for _, tensor in tensors_of(self.output)]

    @property
    def width(self) -> int:
        """How many columns the rows have."""
        sizes = [self.main, *(part for part in self.parts if part is not self.main)]
        return sum(prod(part.shape[1:]) for part in sizes)

    def whole(self, rows: Tensor) -> Any:
        """Return rows (N, total) as the network returned them."""
        own = self.main
        sizes = [prod(part.shape[1:]) for part in (own, *(part for part in self.parts if part is not own))]
        main, *rest = torch.split(rows, sizes, 1)
        left = iter(rest)
        given = [
            (main if part is own else next(left)).reshape(len(rows), *part.shape[1:]).to(part.dtype)
            for part in self.parts
        ]
        return _filled(self.output, iter(given))

    def beside(self, main: Tensor) -> Any:
        """Return the output with another main one (N, ...), and the others as they are here for every record."""
        others = (part[:1].expand(len(main), *part.shape[1:]).to(main.device) for part in self.parts)
        given = [main if part is self.main else other for part, other in zip(self.parts, others, strict=True)]
        return _filled(self.output, iter(given))


def _filled(form: Any, tensors: Iterator[Tensor], top: bool = True) -> Any:
    """Return an output of the same form with other tensors, in the order of `tensors_of`."""
    if isinstance(form, Tensor):
        return next(tensors)
    if isinstance(form, Mapping):
        made: Any = copy.copy(form)
        for name, part in list(form.items()):
            made[name] = _filled(part, tensors, False)
        return made
    if isinstance(form, tuple | list):
        parts = [_filled(part, tensors, False) for part in form]
        return type(form)(*parts) if hasattr(form, "_fields") else type(form)(parts)
    if not top:
        return form
    made = copy.copy(form)
    for name, part in _parts(form):
        object.__setattr__(made, name, _filled(part, tensors, False))
    return made


@dataclass(frozen=True, eq=False)
class Unpacking:
    """A loss of whole outputs, as one of the rows that `Whole` makes of them."""

    loss: Callable[[Any, Tensor], Tensor]
    layouts: Sequence[Layout]

    def __call__(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of rows (N, total), of an output that is one tensor, or of a main output alone.

        The others are then those that the layout was seen with: for looking whether the loss takes labels.
        """
        for layout in self.layouts:
            if rows.dim() == 2 and rows.shape[1] == layout.width:
                return self.loss(layout.whole(rows), labels)
        seen = self.layouts[0]
        if not isinstance(seen.output, Tensor) and rows.shape[1:] == seen.main.shape[1:]:
            return self.loss(seen.beside(rows), labels)
        return self.loss(rows, labels)
