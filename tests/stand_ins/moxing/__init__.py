"""A stand-in for ModelArts' moxing: OBS is the folder MOXING_ROOT names, obs://bucket/x is bucket/x in it."""
from moxing import file
