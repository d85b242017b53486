"""Make `attack_scenes`, the small models and updates of these tests, importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
