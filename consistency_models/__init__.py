"""Learn, train and use consistency models."""

__version__ = "0.1.0"

from consistency_models.consistency_models import *
from consistency_models.consistency_models import __all__
