# Made by tests/stubs.py; edit the notebooks.
from consistency_models.consistency_models import *
__version__: str
