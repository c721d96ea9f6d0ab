"""Forward maps from differential equations, built on diffrax, with both derivative products.

- `Heat1D`: the heat equation by finite differences in space and any diffrax solver in time.
- `EulerHeat1D`: the explicit Euler scheme on a grid with end points, as published.
- `SpectralHeat1D`: the exact propagator of the heat equation in the sine basis.
- `observed_heat_1d`: that propagator seen through a blurring, nonlinear sensor, as published.
- `integrate`, `real_stability_limit`: fixed-step time integration, the tool for further equations.
- `interior_grid`, `sine_basis`, `second_difference`: grids on the unit interval.
"""

from ._grid import interior_grid as interior_grid
from ._grid import second_difference as second_difference
from ._grid import sine_basis as sine_basis
from ._heat import EulerHeat1D as EulerHeat1D
from ._heat import Heat1D as Heat1D
from ._heat import SpectralHeat1D as SpectralHeat1D
from ._heat import observed_heat_1d as observed_heat_1d
from ._timestep import integrate as integrate
from ._timestep import real_stability_limit as real_stability_limit
