// Tells the agent of a start and waits for its answer, by which the packets are marked: no longer than scitags.wait allows.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent_link.hh"

class XrdSysError;

namespace scitags {

class Announcer {
 public:
  // patience: how long a transfer may wait; 0: none ever does.
  Announcer(XrdSysError& log, const std::string& path, std::chrono::milliseconds patience);

  // Whether a transfer that asked now would wait at all.
  bool waits() const;

  // Hand an event over, as an object of JSON; whether the agent has dealt with it in time. Where it has not, it may
  // have taken it all the same. descriptor is that of the transfer's socket, or -1, and stays the caller's.
  bool announce(const std::string& event, int descriptor);

 private:
  using Moment = std::chrono::steady_clock::time_point;

  std::unique_ptr<AgentLink> borrow();
  void give_back(std::unique_ptr<AgentLink> link);
  void has_answered(bool in_time);

  XrdSysError& log_;
  const std::string path_;
  const std::chrono::milliseconds patience_;
  std::atomic<Moment::rep> not_before_{0};
  std::atomic<bool> is_late_{false};
  std::mutex mutex_;
  std::vector<std::unique_ptr<AgentLink>> idle_;
  std::size_t borrowed_ = 0;
};

}  // namespace scitags
