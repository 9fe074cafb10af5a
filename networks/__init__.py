"""The networks of the SESEMI paper, each a trunk; sesemi.py adds the heads."""
from networks.sesemi import TRUNKS, build_sesemi, build_supervised
