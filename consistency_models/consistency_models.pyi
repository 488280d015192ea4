# Made by tests/stubs.py; edit the notebooks.
from consistency_models.consistency_training import *
from consistency_models.data import *
from consistency_models.editing import *
from consistency_models.improved_consistency_training import *
from consistency_models.losses import *
from consistency_models.metrics import *
from consistency_models.networks import *
from consistency_models.parameterization import *
from consistency_models.paths import *
from consistency_models.pretrained import *
from consistency_models.sampling import *
from consistency_models.schedules import *
from consistency_models.trainer import *
from consistency_models.utils import *
