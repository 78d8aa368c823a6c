from .building import mixture as mixture
from .conditional import ConditionalMixture as ConditionalMixture
from .conditional import Support as Support
from .kernels import (
    Choice as Choice,
)
from .kernels import (
    Dirac as Dirac,
)
from .kernels import (
    Isotropic as Isotropic,
)
from .kernels import (
    Kernel as Kernel,
)
from .kernels import (
    Local as Local,
)
from .kernels import (
    Whitened as Whitened,
)
from .kernels import (
    scott as scott,
)
from .report import Report as Report
from .report import Trial as Trial
from .selection import Auto as Auto
from .value import Mixture as Mixture
