"""Privacy as a test: `pytest examples/test_private.py`. A failing audit keeps its report in `leakaudit-out/`."""

import pytest

from examples.minimal import model, train_data
from leakaudit.testing import assert_private


@pytest.mark.privacy  # so that `pytest -m "not privacy"` leaves the slow ones out
def test_obscured_updates_do_not_give_the_faces_away() -> None:
    """The clients share gradients of drawn pictures, so at most a quarter of the faces may be picked out."""
    assert_private(model, train_data, defense="obscure", max_identification=0.25, records=32)
