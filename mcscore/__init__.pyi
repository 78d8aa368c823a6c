from . import (
    chunked as chunked,
)
from . import (
    datasets as datasets,
)
from . import (
    experiments as experiments,
)
from . import (
    flows as flows,
)
from . import (
    frames as frames,
)
from . import (
    generators as generators,
)
from . import (
    inference as inference,
)
from . import (
    jet as jet,
)
from . import (
    metrics as metrics,
)
from . import (
    mixtures as mixtures,
)
from . import (
    pipeline as pipeline,
)
from . import (
    plotting as plotting,
)
from . import (
    schedules as schedules,
)
from . import (
    storage as storage,
)
from ._arrays import pytree as pytree
from .flows import (
    CanonicalClock as CanonicalClock,
)
from .flows import (
    TimeClock as TimeClock,
)
from .flows import (
    denoise as denoise,
)
from .flows import (
    divergence as divergence,
)
from .flows import (
    encode as encode,
)
from .flows import (
    log_density as log_density,
)
from .flows import (
    minibatch_score as minibatch_score,
)
from .flows import (
    score as score,
)
from .flows import (
    trajectory as trajectory,
)
from .flows import (
    transport as transport,
)
from .flows import (
    velocity as velocity,
)
from .frames import Affine as Affine
from .frames import Gaussianize as Gaussianize
from .frames import Identity as Identity
from .generators import (
    MLP as MLP,
)
from .generators import (
    Generator as Generator,
)
from .generators import (
    Pairs as Pairs,
)
from .generators import (
    generate_pairs as generate_pairs,
)
from .generators import (
    load as load,
)
from .generators import (
    refine as refine,
)
from .generators import (
    train as train,
)
from .mixtures import (
    Auto as Auto,
)
from .mixtures import (
    ConditionalMixture as ConditionalMixture,
)
from .mixtures import (
    Dirac as Dirac,
)
from .mixtures import (
    Isotropic as Isotropic,
)
from .mixtures import (
    Local as Local,
)
from .mixtures import (
    Mixture as Mixture,
)
from .mixtures import (
    Whitened as Whitened,
)
from .mixtures import (
    mixture as mixture,
)
from .pipeline import fit as fit
from .pipeline import fit_stages as fit_stages
from .schedules import (
    VE as VE,
)
from .schedules import (
    VP as VP,
)
from .schedules import (
    Cosine as Cosine,
)
from .schedules import (
    Linear as Linear,
)
from .schedules import (
    Rectified as Rectified,
)
from .schedules import (
    Schedule as Schedule,
)

__version__: str
