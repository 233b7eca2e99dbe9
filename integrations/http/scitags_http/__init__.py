"""Tagged requests of HTTP services, told to the agent.

    from scitags_http import TellsAgentASGI    application = TellsAgentASGI(application)
    from scitags_http import TellsAgentWSGI    application = TellsAgentWSGI(application)

`scitags http-server config` prints what nginx and Apache need for the same.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_http.asgi import TellsAgentASGI
    from scitags_http.wsgi import TellsAgentWSGI

__all__ = ["TellsAgentASGI", "TellsAgentWSGI"]


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_http.asgi" if name.endswith("ASGI") else "scitags_http.wsgi"), name)
