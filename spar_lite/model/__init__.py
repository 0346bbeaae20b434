"""The model room: one 4-bit base with two LoRA adapters, and the engine that generates with it.

Importing this loads torch; only ``train`` and the steps that need the model do.
"""

from spar_lite.model.machine import freeze_libraries
from spar_lite.model.policy import ADAPTERS, Policy
from spar_lite.model.reference import self_check
from spar_lite.model.rollout import RolloutEngine
from spar_lite.model.source import cache_folder, locate

__all__ = ["ADAPTERS", "Policy", "RolloutEngine", "cache_folder", "locate", "self_check"]

freeze_libraries()
