"""The flat namespace: every public name of the lessons' modules, each declared in the `__all__` of its own module.

`from consistency_models.consistency_models import ...` is how older code writes it; `from consistency_models import ...`
gives the same names. Written by hand: without an `__all__` of its own a star import passes on all of these names, which
type checkers follow too.
"""

from consistency_models.avatars import *
from consistency_models.consistency_training import *
from consistency_models.continuous import *
from consistency_models.data import *
from consistency_models.diffusion import *
from consistency_models.distillation import *
from consistency_models.easy import *
from consistency_models.editing import *
from consistency_models.improved_consistency_training import *
from consistency_models.latents import *
from consistency_models.losses import *
from consistency_models.metrics import *
from consistency_models.networks import *
from consistency_models.parameterization import *
from consistency_models.paths import *
from consistency_models.pictures import *
from consistency_models.pretrained import *
from consistency_models.sampling import *
from consistency_models.schedules import *
from consistency_models.trainer import *
from consistency_models.utils import *
from consistency_models.watching import *
