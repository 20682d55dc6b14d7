"""Train language models to collaborate: rewards from simulated futures (CollabLLM, arXiv 2502.00640).

`from collab import multiturn_reward, score_conversation` gives the reward of a plain chat (docs/python.md).
`verifiers.load_environment("collab", task=...)` finds `load_environment` here (docs/environments.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collab.app.library import multiturn_reward, score_conversation
    from collab.app.verifiers_export import load_environment

__version__ = "0.1.0"
__all__ = ["load_environment", "multiturn_reward", "score_conversation"]


def __getattr__(name: str) -> Any:  # these import torch, and `import collab` takes no time
    if name not in __all__:
        raise AttributeError(f"module 'collab' has no attribute {name!r}")
    from collab.app import library, verifiers_export

    return getattr(verifiers_export if name == "load_environment" else library, name)
