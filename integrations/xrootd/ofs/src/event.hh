// The agent's JSON for flow events (docs/agent.md).
#pragma once

#include <string>

#include "transfer.hh"

namespace scitags {

enum class State { kStart, kEnd };

// Append one event, as an object of JSON. The octets moved stand in the end of the first connection alone, and are 0
// in those of the others: which of several connections moved which octet is not known, and sums are to be true.
void append_event(std::string& message, State state, const Transfer& transfer, const Connection& connection,
                  bool is_first);

// What ids begin with in this process: unique on this host, after a restart too.
void make_identity();

}  // namespace scitags
