"""Forward maps from differential equations, built on diffrax, with both derivative products.

- `Heat1D`: the heat equation by finite differences in space and any diffrax solver in time.
- `EulerHeat1D`: the explicit Euler scheme on a grid with end points, as published.
- `SpectralHeat1D`: the exact propagator of the heat equation in the sine basis.
- `observed_heat_1d`: that propagator seen through a blurring, nonlinear sensor, as published.
- `Heat2D`, `Heat3D`, `SpectralHeat2D`, `SpectralHeat3D`: the same on the square and the cube.
- `observed_heat_2d`, `observed_heat_3d`: those propagators seen through a sensor; the latter as published.
- `AdvectionDiffusion2D`: a periodic field carried by a wind with vortices, conserving its mean.
- `DampedOscillator`: from five parameters to the motion; `identifiable`: the four numbers the motion determines.
- `AllenCahn2D`: phase separation on the torus; `observed_allen_cahn_2d` as published, clipped.
- `NavierStokes2D`: the vorticity of a two-dimensional flow on the torus.
- `Darcy2D`, `TransientDarcy2D`, `darcy_pressure`: from the permeability of a medium to the pressure in it.
- `integrate`, `real_stability_limit`: fixed-step time integration, the tool for further equations.
- `interior_grid`, `sine_basis`, `second_difference`: grids on the unit interval, differences on its powers too.
- `wavenumbers_2d`: the Fourier modes of periodic fields on the unit square.
"""

from ._advection_diffusion import AdvectionDiffusion2D as AdvectionDiffusion2D
from ._allen_cahn import AllenCahn2D as AllenCahn2D
from ._allen_cahn import observed_allen_cahn_2d as observed_allen_cahn_2d
from ._darcy import Darcy2D as Darcy2D
from ._darcy import TransientDarcy2D as TransientDarcy2D
from ._darcy import darcy_pressure as darcy_pressure
from ._fourier import wavenumbers_2d as wavenumbers_2d
from ._grid import interior_grid as interior_grid
from ._grid import second_difference as second_difference
from ._grid import sine_basis as sine_basis
from ._heat import EulerHeat1D as EulerHeat1D
from ._heat import Heat1D as Heat1D
from ._heat import SpectralHeat1D as SpectralHeat1D
from ._heat import observed_heat_1d as observed_heat_1d
from ._heat_nd import Heat2D as Heat2D
from ._heat_nd import Heat3D as Heat3D
from ._heat_nd import SpectralHeat2D as SpectralHeat2D
from ._heat_nd import SpectralHeat3D as SpectralHeat3D
from ._heat_nd import observed_heat_2d as observed_heat_2d
from ._heat_nd import observed_heat_3d as observed_heat_3d
from ._navier_stokes import NavierStokes2D as NavierStokes2D
from ._oscillator import DampedOscillator as DampedOscillator
from ._oscillator import identifiable as identifiable
from ._timestep import integrate as integrate
from ._timestep import real_stability_limit as real_stability_limit
