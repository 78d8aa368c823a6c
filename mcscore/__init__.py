"""Training-free score estimation and supervised one-step generative models in JAX.

After Liu, Yang, Zhang, Bao, Cao and Zhang, arXiv 2310.14458. The whole method is one call,
``fit(key, x)``; every stage is a pure function of its own, in a room of its own:

    schedules    Linear, Cosine, VP, VE, Rectified          t -> (alpha, sigma)
    frames       Identity, Affine, Gaussianize              the user's columns -> the law's coordinates
    mixtures     mixture, kernels, Auto                     rows -> a Gaussian mixture in blocks
    jet          stream, merge, Evaluation                  its density, score and Laplacian in one pass
    flows        score, denoise, ..., transport, encode     fields, and the flow between noise and data
    generators   generate_pairs, train, refine, load        a network learns z -> x

Beside them ``datasets``, ``metrics``, ``plotting`` and ``experiments``.
"""

from mcscore import _face

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = _face.face(__name__, __file__)
