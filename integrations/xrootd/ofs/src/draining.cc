#include "draining.hh"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>

namespace scitags {
namespace {

constexpr std::chrono::milliseconds kLookEvery(20);
constexpr std::chrono::seconds kAtMost(60);  // a client that takes nothing more

}  // namespace

// The socket is the server's, which may have closed it by now: then its number is nobody's, or another connection's.
bool Draining::is_needed(const Transfer& transfer) {
  int octets = 0;
  return transfer.descriptor >= 0 && ioctl(transfer.descriptor, SIOCOUTQ, &octets) == 0 && octets > 0 &&
         connection_of(transfer.descriptor) == transfer.connection;
}

void Draining::add(std::shared_ptr<Transfer> transfer, Moment now) {
  if (waiting_.empty()) due_ = now + kLookEvery;
  waiting_.push_back({std::move(transfer), now + kAtMost});
}

void Draining::look(Moment now, const Ended& ended) {
  const auto is_over = [&](const Waiting& one) {
    if (now < one.until && is_needed(*one.transfer)) return false;
    ended(*one.transfer);
    return true;
  };
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), is_over), waiting_.end());
  due_ = now + kLookEvery;
}

}  // namespace scitags
