"""EKG: ensemble knowledge guided sub-network search and fine-tuning for filter pruning.

Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022.
"""

import utils  # noqa: F401  first: it sets TensorFlow's environment
from ekg.complexity import Complexity
from ekg.groups import ChannelGroup
from ekg.greedy_search import SearchResult, search
from ekg.subnetwork import Subnetwork
from ekg.supernet import Supernet

__all__ = ["ChannelGroup", "Complexity", "SearchResult", "Subnetwork", "Supernet", "search"]
