// The scitags.* directives of xrootd's configuration file (docs/xrootd.md).
#pragma once

#include <chrono>
#include <string>

#include "rules.hh"

class XrdOucEnv;
class XrdSysError;

namespace scitags {

struct Settings {
  std::string socket = "/run/scitags/agent.sock";
  std::size_t queue = 16384;
  bool passes_sockets = true;
  std::chrono::milliseconds wait{0};  // for the agent, at the begin of a transfer
  Rules rules;
};

// Read the file. What is wrong is logged with file and line, all of it; then, or when the file cannot be read,
// this raises ConfigError.
Settings read_settings(const std::string& path, XrdOucEnv* environment, XrdSysError& log, bool echoes = false);

}  // namespace scitags
