from .infer import infer
from .alignment import Alignment
from .spec import Spec, Group, Site
