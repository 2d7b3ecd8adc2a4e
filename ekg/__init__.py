"""EKG: ensemble knowledge guided sub-network search and fine-tuning for filter pruning.

Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022.
"""

from ekg.complexity import Complexity
from ekg.groups import ChannelGroup
from ekg.subnetwork import Subnetwork
from ekg.supernet import Supernet

__all__ = ["ChannelGroup", "Complexity", "Subnetwork", "Supernet"]
