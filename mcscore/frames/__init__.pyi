from .affine import Affine as Affine
from .affine import AffineFrame as AffineFrame
from .affine import Identity as Identity
from .frame import Frame as Frame
from .frame import FrameKind as FrameKind
from .gaussianize import Gaussianize as Gaussianize
from .gaussianize import GaussianizedFrame as GaussianizedFrame
from .ties import dequantized as dequantized
