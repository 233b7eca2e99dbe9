// One file being read or written: what is known of it from its open to its end.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "address.hh"
#include "tag.hh"

namespace scitags {

using Clock = std::chrono::system_clock;

struct Transfer {
  Transfer(Scitag tag, bool is_upload, std::string application);

  const std::uint64_t number;  // unique in this process
  const Scitag tag;
  const bool is_upload;  // the far end supplies the data
  const std::string application;  // safe within JSON
  const Clock::time_point began = Clock::now();

  std::atomic<std::uint64_t> octets_read{0};
  std::atomic<std::uint64_t> octets_written{0};

  // Of a root:// session, whose connections bear a common name: found again by the reporter (streams.hh).
  std::string session;
  Address peer;

  // Of a download by HTTP, which is over for the server while the kernel still sends.
  int descriptor = -1;
  std::optional<Connection> connection;

  // Of the reporter's thread alone.
  std::vector<Connection> reported;
  bool has_reported(const Connection& connection) const;
  Clock::time_point ended{};
};

}  // namespace scitags
