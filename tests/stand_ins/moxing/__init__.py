"""A stand-in for ModelArts' moxing: obs://bucket/x is the file bucket/x in the folder $MOXING_ROOT."""
from moxing import file
