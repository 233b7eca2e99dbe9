// What the storage says moves a file: the application in events and fireflies.
#pragma once

#include <string>

#include "XrdSec/XrdSecEntity.hh"

namespace scitags {

// A client of root:// says who it is when it logs in: xrdcp, python3, what XRD_APPNAME says; one that does not is "xrootd".
// What is fetched or put by HTTP is "xrootd-http", whoever asks, and a third-party copy, which nobody else but a transfer
// service would ask for, "xrootd-tpc". The name is safe within a string of JSON, and of 64 octets at most.
std::string application_of(const XrdSecEntity& client, bool is_copy);

}  // namespace scitags
