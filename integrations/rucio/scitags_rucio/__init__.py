"""Rucio: every transfer bears its activity's tag.

    [policy]
    package = scitags_rucio.policy            # or scitags_rucio.wrap.PACKAGE, round the site's own
    [scitags]
    experiment = atlas

in rucio.cfg is all. Rucio imports the policy package early, in the server, in every daemon and in the clients, and
that import is what puts the tag on FTS submissions (scitags_rucio.fts) and on direct transfers
(scitags_rucio.direct). Importing this module alone changes nothing, and imports nothing of Rucio.
"""

import logging

OLDEST_MAJOR = 34
NEWEST_MAJOR = 41

# In the form of Rucio's own policy packages. Both ends are tested; with any other Rucio nothing is changed.
SUPPORTED_VERSION = f">={OLDEST_MAJOR},<{NEWEST_MAJOR + 1}"


def enable() -> None:
    """Have this process's transfers tagged, for a policy package that says so itself. Never raises, twice is once."""
    try:
        from scitags_rucio.hooks import install  # noqa: PLC0415  (a part that is missing must not stop Rucio)

        install()
    except Exception as error:
        logging.getLogger(__name__).warning("scitags: transfers stay as Rucio makes them: %r", error)
