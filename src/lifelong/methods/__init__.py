"""Continual-learning methods, one a file, and the explicit dict of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifelong import settings
from lifelong.errors import InputError, unknown
from lifelong.methods.a_gem import AGEM
from lifelong.methods.adamerging import AdaMerging
from lifelong.methods.anchor import Anchor
from lifelong.methods.bi_r import BIR
from lifelong.methods.bic import BiC
from lifelong.methods.chain import Chain
from lifelong.methods.der import DER, DERpp
from lifelong.methods.dgr import DGR
from lifelong.methods.er import ER
from lifelong.methods.er_ace import ERACE
from lifelong.methods.ewc import EWC
from lifelong.methods.feature_extraction import FeatureExtraction
from lifelong.methods.fromp import FROMP
from lifelong.methods.gdumb import GDumb
from lifelong.methods.gem import GEM
from lifelong.methods.generative_classifier import GenerativeClassifier
from lifelong.methods.growing import Growing
from lifelong.methods.gss import GSS
from lifelong.methods.hat import HAT
from lifelong.methods.icarl import ICaRL
from lifelong.methods.joint import Joint
from lifelong.methods.l2 import L2
from lifelong.methods.la_maml import LaMAML
from lifelong.methods.lfl import LFL
from lifelong.methods.lwf import LwF
from lifelong.methods.lwf_mc import LwFMC
from lifelong.methods.mas import MAS
from lifelong.methods.mbpa import MbPA
from lifelong.methods.merge import TIESCL, AverageIndependent, AverageSequential, MagMax, MaxAbs, Merge, RandMix
from lifelong.methods.method import Method
from lifelong.methods.mir import MIR
from lifelong.methods.model_soup import ModelSoup
from lifelong.methods.naive import Naive
from lifelong.methods.ncm import NCM
from lifelong.methods.oml import OML
from lifelong.methods.opcm import OPCM
from lifelong.methods.packnet import PackNet
from lifelong.methods.piggyback import Piggyback
from lifelong.methods.progressive import Progressive
from lifelong.methods.ranpac import RanPAC
from lifelong.methods.rwalk import RWalk
from lifelong.methods.scp import SCP
from lifelong.methods.separate import Separate
from lifelong.methods.si import SI
from lifelong.methods.slda import SLDA
from lifelong.methods.task_inference import TaskInference
from lifelong.methods.vcl import VCL, Uncertainty, uncertainty
from lifelong.methods.vcl_memory import VCLMemory
from lifelong.methods.xdg import XdG

METHODS: dict[str, type[Method]] = {
    "naive": Naive,
    "feature-extraction": FeatureExtraction,
    "joint": Joint,
    "l2": L2,
    "lwf": LwF,
    "ewc": EWC,
    "mas": MAS,
    "si": SI,
    "rwalk": RWalk,
    "scp": SCP,
    "lwf-mc": LwFMC,
    "lfl": LFL,
    "er": ER,
    "der": DER,
    "derpp": DERpp,
    "er-ace": ERACE,
    "mir": MIR,
    "gss": GSS,
    "gdumb": GDumb,
    "mbpa": MbPA,
    "la-maml": LaMAML,
    "oml": OML,
    "icarl": ICaRL,
    "bic": BiC,
    "gem": GEM,
    "a-gem": AGEM,
    "ncm": NCM,
    "slda": SLDA,
    "ranpac": RanPAC,
    "dgr": DGR,
    "bi-r": BIR,
    "generative-classifier": GenerativeClassifier,
    "vcl": VCL,
    "fromp": FROMP,
    "vcl-memory": VCLMemory,
    "packnet": PackNet,
    "piggyback": Piggyback,
    "separate": Separate,
    "task-inference": TaskInference,
    "xdg": XdG,
    "hat": HAT,
    "progressive": Progressive,
    "growing": Growing,
    "merge": Merge,
    "magmax": MagMax,
    "maxabs": MaxAbs,
    "avg-sequential": AverageSequential,
    "avg-independent": AverageIndependent,
    "randmix": RandMix,
    "ties-cl": TIESCL,
    "opcm": OPCM,
    "model-soup": ModelSoup,
    "adamerging": AdaMerging,
}

__all__ = [
    "AGEM",
    "BIR",
    "DER",
    "DGR",
    "ER",
    "ERACE",
    "EWC",
    "FROMP",
    "GEM",
    "GSS",
    "HAT",
    "L2",
    "LFL",
    "MAS",
    "METHODS",
    "MIR",
    "NCM",
    "OML",
    "OPCM",
    "SCP",
    "SI",
    "SLDA",
    "TIESCL",
    "VCL",
    "AdaMerging",
    "Anchor",
    "AverageIndependent",
    "AverageSequential",
    "Chain",
    "DERpp",
    "FeatureExtraction",
    "GDumb",
    "GenerativeClassifier",
    "Growing",
    "ICaRL",
    "Joint",
    "LaMAML",
    "LwF",
    "LwFMC",
    "MagMax",
    "MaxAbs",
    "MbPA",
    "Merge",
    "Method",
    "ModelSoup",
    "Naive",
    "PackNet",
    "Piggyback",
    "Progressive",
    "RWalk",
    "RanPAC",
    "RandMix",
    "Separate",
    "Uncertainty",
    "VCLMemory",
    "XdG",
    "build",
    "uncertainty",
]


def build(name: str, values: Mapping[str, Any]) -> Method:
    """Return the method called `name`, or the chain of several, as in `ewc+lwf`.

    Args:
        name: keys of `METHODS` joined by `+`.
        values: settings; those of a chain are nested under the names of its methods.

    Raises:
        InputError: an unknown method or setting, a value out of range, or methods that cannot be chained.
    """
    names = name.split("+")
    for each in names:
        if each not in METHODS:
            raise unknown("method", each, METHODS)
        if names.count(each) > 1:
            raise InputError(f"method {name} names {each} twice")
    if len(names) == 1:
        return settings.build(METHODS[name], values, f"method {name}")
    for key, nested in values.items():
        if key not in names or not isinstance(nested, Mapping):
            theirs = {each: [field.name for field in settings.fields(METHODS[each])] for each in names}
            having = [f"{each}.{key}" for each, known in theirs.items() if key in known]
            example = f"{names[0]}.{next(iter(theirs[names[0]]), 'NAME')}"
            raise InputError(
                f"method {name}: settings go under the names of its parts: "
                + (" or ".join(having) or f"none has {key!r}, and theirs are said like {example}")
            )
    return Chain({each: settings.build(METHODS[each], values.get(each, {}), f"method {each}") for each in names})
