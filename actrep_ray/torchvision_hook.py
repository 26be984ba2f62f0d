"""Make ``import torchvision`` work beside a CPU-only torch, in every process, at no start-up cost.

The torchvision wheels of PyPI are built against CUDA. Beside a CPU-only torch their C++ library
cannot be opened, and ``import torchvision`` then dies with ``operator torchvision::nms does not
exist``, because torchvision decorates operators that nobody declared. Its pure-Python transforms,
which are all that the Qwen video processors use, need none of them, so declaring the two schemas
first is enough.

This module owns that repair: a finder on ``sys.meta_path`` that waits for the first import of
torchvision, and the ``.pth`` file by which every interpreter of the environment (driver, Ray
workers, the children of the rollout engine) places the finder before any other import. Nothing
here imports torch until torchvision is imported; where torchvision's library loads by itself (a
CUDA torch, or a torchvision built for the CPU) nothing is declared.

``launch.sh setup`` writes the ``.pth`` file by ``install_pth``; a wheel brings it (``setup.py``).
"""

import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, pathlib and torch would cost time in every process
    from collections.abc import Sequence
    from pathlib import Path

PTH_NAME = "actrep_ray_torchvision.pth"
PTH_LINE = "import actrep_ray.torchvision_hook as hook; hook.activate()\n"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A torch.library.Library withdraws its schemas when it is collected: keep it for good.
declared: list[object] = []


def activate() -> None:
    """Place the finder first on ``sys.meta_path``; a second call, or a late one, does nothing."""
    if "torchvision" in sys.modules:
        return
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def is_declared_here() -> bool:
    """Whether this process had to declare torchvision's operators (False until it is imported)."""
    return bool(declared)


def install_pth() -> "Path":
    """Write the ``.pth`` file into this interpreter's site-packages and return its path."""
    from pathlib import Path

    path = Path(sysconfig.get_paths()["purelib"]) / PTH_NAME
    if not path.exists() or path.read_text(encoding="utf-8") != PTH_LINE:
        path.write_text(PTH_LINE, encoding="utf-8")
    return path


class TorchvisionFinder:
    """Finds only the top-level ``torchvision``, and gives it a loader that declares first."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


class TorchvisionLoader(SourceFileLoader):
    """The ordinary source loader, with the declarations made just before the code runs."""

    def exec_module(self, module: ModuleType) -> None:
        declare_operators_if_missing(self.path)
        super().exec_module(module)


def declare_operators_if_missing(torchvision_init: str) -> None:
    """Declare ``nms`` and ``qnms`` unless torchvision's C++ library brings them itself."""
    import torch

    if torch.version.cuda is not None or declared:
        return
    if not is_library_loadable(torchvision_init):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        declared.append(library)


def is_library_loadable(torchvision_init: str) -> bool:
    """Try what torchvision itself will try; opening the library a second time is free."""
    from pathlib import Path

    import torch

    for path in sorted(Path(torchvision_init).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(path))
        except OSError:  # a library it needs (CUDA) is not on this machine
            return False
        return True
    return False
