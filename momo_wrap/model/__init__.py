"""The momentum model of the loss: averages of losses and of displacements.

The base optimizer averages gradients as B_k = a B_{k-1} + b g_k and moves along a preconditioned
d_k = p B_k + q g_k. The same weights, applied to the losses, give a model of the loss around the
current parameters x_k (Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for
Adaptive Learning Rates", ICML 2024, arXiv 2305.07583, section 2):

    F_k = a F_{k-1} + b f_k            R_k = a R_{k-1} + b
    E_k = a (E_{k-1} + ⟨B_{k-1}, x_k - x_{k-1}⟩)                                          (1)

    m(x) = (f̄ + e + ⟨d_k, x - x_k⟩) / ρ
    f̄ = p F_k + q f_k ,    e = p E_k ,    ρ = p R_k + q                                   (2)

The paper stores ⟨g_j, x_j⟩ instead of the moves in (1), which need no pass over the parameters and
no difference of two large numbers.

Each parameter group i has its own averaging, and so its own F, R, E and ρ. The groups are
linearized separately and added up,

    m(x) = Σ_i ω_i f̄_i/ρ_i + Σ_i ( e_i + ⟨d_i, x_i - x_{k,i}⟩ )/ρ_i                       (2')

where ω_i is the group's share of the predicted decrease of the step. If all groups average in the
same way, this is (2).

If a gradient is clipped, to c g_k with 0 < c <= 1, the base gives it the weight b c, and so does
the model. It then needs the sum of these weights too, S_k = a S_{k-1} + b c:

    F_k = a F_{k-1} + b c f_k ,    f̄ = p F_k + q c f_k ,    ρ = p S_k + q c               (2'')

A group that joins late has no gradients of earlier losses, but the losses are known: F_k/W_k is
then taken from the earlier groups, with a separate weight W_k. For all other groups, W = R.
"""

from momo_wrap.model.coefficients import Start, coefficients_of, first_weight
from momo_wrap.model.momentum import SUMS, Averaging, Coefficients, MomentumModel, loss_of_model

__all__ = [
    "SUMS",
    "Averaging",
    "Coefficients",
    "MomentumModel",
    "Start",
    "coefficients_of",
    "first_weight",
    "loss_of_model",
]
