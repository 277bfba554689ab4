"""The registry of merge rules: the names that recipes and the command line know."""

from __future__ import annotations

from lifelong.merging.rule import Rule
from lifelong.merging.rules.arcee_fusion import ArceeFusion
from lifelong.merging.rules.attention import Attention
from lifelong.merging.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTIES
from lifelong.merging.rules.consensus import Consensus
from lifelong.merging.rules.dare import DARE, DARETIES
from lifelong.merging.rules.della import DELLA, DELLALinear
from lifelong.merging.rules.emr import EMR
from lifelong.merging.rules.fisher import Fisher
from lifelong.merging.rules.interpolation import Interpolation
from lifelong.merging.rules.isotropic import IsoC, IsoCTS
from lifelong.merging.rules.karcher import Karcher
from lifelong.merging.rules.layer_wise import LayerWise
from lifelong.merging.rules.linear import Linear
from lifelong.merging.rules.magmax import MagMax, MaxAbs
from lifelong.merging.rules.model_stock import ModelStock
from lifelong.merging.rules.multislerp import MultiSLERP
from lifelong.merging.rules.nearswap import NearSwap
from lifelong.merging.rules.nuslerp import NuSLERP
from lifelong.merging.rules.passthrough import Passthrough
from lifelong.merging.rules.randmix import RandMix
from lifelong.merging.rules.regmean import RegMean
from lifelong.merging.rules.sce import SCE
from lifelong.merging.rules.selective import Selective
from lifelong.merging.rules.sign_consensus import SignConsensus
from lifelong.merging.rules.slerp import SLERP
from lifelong.merging.rules.task_arithmetic import TaskArithmetic
from lifelong.merging.rules.ties import TIES
from lifelong.merging.rules.tsv import TSV
from lifelong.merging.rules.wudi import WUDI

RULES: dict[str, type[Rule]] = {
    # averages
    "linear": Linear,
    "interpolation": Interpolation,
    "passthrough": Passthrough,
    # on the sphere
    "slerp": SLERP,
    "nuslerp": NuSLERP,
    "multislerp": MultiSLERP,
    "karcher": Karcher,
    # of task vectors
    "task_arithmetic": TaskArithmetic,
    "layer_wise": LayerWise,
    "ties": TIES,
    "dare_linear": DARE,
    "dare_ties": DARETIES,
    "della": DELLA,
    "della_linear": DELLALinear,
    "breadcrumbs": Breadcrumbs,
    "breadcrumbs_ties": BreadcrumbsTIES,
    "model_stock": ModelStock,
    "sce": SCE,
    "sign_consensus": SignConsensus,
    "magmax": MagMax,
    "maxabs": MaxAbs,
    "randmix": RandMix,
    # of two models, number by number
    "nearswap": NearSwap,
    "arcee_fusion": ArceeFusion,
    # by how alike task vectors are
    "attention": Attention,
    "selective": Selective,
    # of masks
    "consensus": Consensus,
    "emr": EMR,
    # of matrices
    "tsv": TSV,
    "iso_c": IsoC,
    "iso_cts": IsoCTS,
    "wudi": WUDI,
    # of statistics of each expert
    "fisher": Fisher,
    "regmean": RegMean,
}
