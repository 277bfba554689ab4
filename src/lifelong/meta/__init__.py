"""Meta-learning: an initialisation, or a distance, from which a new task is learned from a few examples.

An algorithm is a dataclass in a file of its own; a network takes weights with a task axis, so that a whole batch of
tasks adapts at once; an engine says how the batch is computed.
"""

from __future__ import annotations

from lifelong.meta.anil import ANIL
from lifelong.meta.boil import BOIL
from lifelong.meta.engine import Engine, answers, gradient
from lifelong.meta.episodes import Episodes, FewShot
from lifelong.meta.fomaml import FOMAML
from lifelong.meta.imaml import IMAML
from lifelong.meta.learner import MetaLearner, Outcome, Problem
from lifelong.meta.maml import MAML
from lifelong.meta.matching_net import MatchingNet
from lifelong.meta.meta_sgd import MetaSGD
from lifelong.meta.network import TaskNetwork, task_network
from lifelong.meta.pretraining import FineTuning, LinearProbe
from lifelong.meta.proto_maml import ProtoMAML
from lifelong.meta.protonet import ProtoNet
from lifelong.meta.reptile import Reptile
from lifelong.meta.sinusoids import Sinusoids

ALGORITHMS: dict[str, type[MetaLearner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": Reptile,
    "imaml": IMAML,
    "meta-sgd": MetaSGD,
    "anil": ANIL,
    "boil": BOIL,
    "proto-maml": ProtoMAML,
    "protonet": ProtoNet,
    "matching-net": MatchingNet,
    "linear-probe": LinearProbe,
    "fine-tuning": FineTuning,
}

__all__ = [
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "MAML",
    "Engine",
    "Episodes",
    "FewShot",
    "FineTuning",
    "LinearProbe",
    "MatchingNet",
    "MetaLearner",
    "MetaSGD",
    "Outcome",
    "Problem",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "Sinusoids",
    "TaskNetwork",
    "answers",
    "gradient",
    "task_network",
]
