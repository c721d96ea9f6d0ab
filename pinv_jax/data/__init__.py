"""Data: paired data sets made with a forward map, random fields, noise, splits, statistics for normalisation."""

from ._fields import minmax_sine_bump_3d as minmax_sine_bump_3d
from ._fields import periodic_field_2d as periodic_field_2d
from ._fields import sine_series_2d as sine_series_2d
from ._images import SmoothImages as SmoothImages
from ._images import smooth_images as smooth_images
from ._interfaces import interfaces_2d as interfaces_2d
from ._pairs import PairedData as PairedData
from ._pairs import add_noise as add_noise
from ._pairs import generate as generate
from ._pairs import split as split
from ._pairs import statistics as statistics
from ._series import GaussianSeries as GaussianSeries
from ._series import clipped_sine_series as clipped_sine_series
from ._series import matern_field as matern_field
from ._series import minmax_sine_series as minmax_sine_series
