"""Learn, train and use consistency models."""

__version__ = "0.1.0"

import os
import sys
from typing import TYPE_CHECKING

# On a crowded machine OpenMP's threads should not spin while they wait; it has to be said before torch is imported.
if os.path.basename((sys.argv or [""])[0]).startswith("consistency-models") and not any(k.startswith(("GOMP_", "KMP_", "OMP_WAIT_")) for k in os.environ):
    os.environ["GOMP_SPINCOUNT"] = "1000"

from consistency_models import consistency_models as _flat
from consistency_models.consistency_models import *

if not TYPE_CHECKING:  # the names of the star import, without os, sys and the modules; type checkers take them from it
    __all__ = [name for name in vars(_flat) if not name.startswith("_")]
