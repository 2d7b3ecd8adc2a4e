"""EKG: ensemble knowledge guided sub-network search and fine-tuning for filter pruning.

Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning",
ECCV 2022.
"""

try:
    import tensorflow
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise ModuleNotFoundError(
        "ekg needs TensorFlow, and no build of it is installed; run pip install tensorflow, or "
        "tensorflow-cpu, or 'tensorflow[and-cuda]'.",
        name="tensorflow",
    ) from None
if tuple(map(int, tensorflow.__version__.split(".")[:2])) < (2, 20):
    # Einsums with statistics of the batch differ there, and no WebP image can be read.
    raise ImportError(
        f"ekg needs TensorFlow 2.20 or later, and {tensorflow.__version__} is installed; run "
        "pip install 'tensorflow>=2.20', or 'tensorflow-cpu>=2.20', whichever you have.",
        name="tensorflow",
    )

from ekg import tasks, testing
from ekg.data.own import make_data
from ekg.data.sources import Data
from ekg.deploy.write import Export, export
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.distil.repair import repair
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.graph import flow
from ekg.graph.complexity import Complexity
from ekg.graph.cutting import open_model
from ekg.graph.groups import ChannelGroup
from ekg.graph.records import BACK, IN, OUT, LayerRecord, Weight
from ekg.graph.registry import register_layer
from ekg.inspection import inspect
from ekg.latency.timing import Timing, measure_latency
from ekg.network.inspect import Inspection
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.phases import build_bank, fine_tune, slim
from ekg.pruning import PruneResult, prune
from ekg.run.settings import RunSettings
from ekg.searching.criteria import CriterionContext
from ekg.searching.greedy import search
from ekg.searching.history import HistoryEntry, SearchResult
from ekg.searching.latency import Latency
from ekg.searching.settings import SearchSettings, SubsetSettings
from ekg.searching.targets import Target
from ekg.trade_off import Front, front

__version__ = "0.3.0"

__all__ = [
    "BACK",
    "IN",
    "OUT",
    "ChannelGroup",
    "Complexity",
    "Compute",
    "CriterionContext",
    "Data",
    "EkgError",
    "Export",
    "FineTuneSettings",
    "Front",
    "HistoryEntry",
    "Inspection",
    "Latency",
    "LayerRecord",
    "PruneResult",
    "RunSettings",
    "SearchResult",
    "SearchSettings",
    "SubsetSettings",
    "Subnetwork",
    "Supernet",
    "Target",
    "Team",
    "Timing",
    "Weight",
    "build_bank",
    "export",
    "fine_tune",
    "flow",
    "front",
    "inspect",
    "make_data",
    "measure_latency",
    "open_model",
    "prune",
    "register_layer",
    "repair",
    "search",
    "slim",
    "tasks",
    "testing",
]
