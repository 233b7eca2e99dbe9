"""Every error that the suite raises on purpose.

ScitagsError
├── InvalidValue        the caller gave a value that no rule allows
├── UnknownName         a name or id that the registry does not list
├── PeerDataError       what arrived from outside cannot be understood
│   ├── TagError        a scitag, flow label or option that bears no valid tag
│   ├── CarrierError    a header, URL or transfer job whose tag is malformed
│   ├── FireflyError    a datagram that is no firefly
│   ├── FlowEventError  a flow event (pipe line, JSON) that is malformed
│   └── RegistryError   a registry that is not to be used
├── ConfigError         a configuration that cannot be used
└── PluginError         a plug-in that failed to load or raised

Each message names the bad value. All of them but PluginError are ValueErrors too, so that the
author of a plug-in can catch what the standard library would raise in the same place.
"""

from __future__ import annotations


class ScitagsError(Exception):
    """Root of the tree."""


class InvalidValue(ScitagsError, ValueError):
    """The caller gave a value outside its documented range."""


class UnknownName(ScitagsError, ValueError):
    """The registry does not list this experiment or activity."""


class PeerDataError(ScitagsError, ValueError):
    """Data from a peer that cannot be understood."""


class TagError(PeerDataError):
    """A wire value that bears no valid tag."""


class CarrierError(PeerDataError):
    """A carrier (header, URL, job) whose tag is malformed."""


class FireflyError(PeerDataError):
    """A datagram that is no firefly."""


class FlowEventError(PeerDataError):
    """A flow event that is malformed."""


class RegistryError(PeerDataError):
    """Bytes that are no usable registry."""


class ConfigError(ScitagsError, ValueError):
    """A configuration that cannot be used."""


class PluginError(ScitagsError):
    """A plug-in that failed to load or raised in a hook."""


_SHOWN = 120


def shown(value: object) -> str:
    """The value as an error message shows it: its repr, cut so that a hostile peer cannot fill a log."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
