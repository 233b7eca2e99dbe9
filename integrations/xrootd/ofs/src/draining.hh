// Transfers whose file is closed, while what was read from it still waits in the kernel to be sent.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "transfer.hh"

namespace scitags {

class Draining {
 public:
  using Moment = std::chrono::steady_clock::time_point;
  using Ended = std::function<void(Transfer&)>;

  // Whether the transfer's connection has something left to send.
  static bool is_needed(const Transfer& transfer);

  void add(std::shared_ptr<Transfer> transfer, Moment now);

  // When the next look is due; Moment::max() when none is.
  Moment due() const { return waiting_.empty() ? Moment::max() : due_; }

  // Tell of those that have nothing left, or whose time is over.
  void look(Moment now, const Ended& ended);

 private:
  struct Waiting {
    std::shared_ptr<Transfer> transfer;
    Moment until;
  };

  std::vector<Waiting> waiting_;
  Moment due_{};
};

}  // namespace scitags
