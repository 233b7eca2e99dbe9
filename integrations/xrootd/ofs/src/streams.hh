// The further connections of a root:// session (xrdcp -S): they are bound after the file is open.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "transfer.hh"

namespace scitags {

class Streams {
 public:
  using Moment = std::chrono::steady_clock::time_point;
  using Found = std::function<void(const std::shared_ptr<Transfer>&, const Connection&, int descriptor)>;

  // Look for those of this transfer for a while.
  void expect(std::shared_ptr<Transfer> transfer);

  // When the next look is due; Moment::max() when none is.
  Moment due() const;

  // Tell of each connection that this transfer's session has now. In any thread.
  static void look_for(const std::shared_ptr<Transfer>& transfer, const Found& found);

  // Look once more, now that this transfer has ended: its streams may have been bound since the last look.
  void look_back(const std::shared_ptr<Transfer>& transfer, const Found& found);

  // Look now if it is due, and tell of each connection that a transfer has not reported yet.
  void look(Moment now, const Found& found);

 private:
  struct Wanted {
    std::weak_ptr<Transfer> transfer;
    Moment due;
    std::size_t looks;
  };

  void rest_after(Moment began);

  std::vector<Wanted> wanted_;
  Moment not_before_{};
};

}  // namespace scitags
