#include "streams.hh"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "Xrd/XrdLink.hh"

namespace scitags {
namespace {

using std::chrono::milliseconds;

// After the open. A client binds its streams at once; over a long path that takes some round trips.
constexpr milliseconds kLooks[] = {milliseconds(3),   milliseconds(20),   milliseconds(100),
                                   milliseconds(500), milliseconds(2000), milliseconds(10000)};
// A look goes over all of the server's connections: with very many it must not take the processor.
constexpr int kRestPerLook = 20;

std::string_view session_of(const char* link) {
  const char* colon = std::strchr(link, ':');
  return colon == nullptr ? std::string_view() : std::string_view(link, static_cast<std::size_t>(colon - link));
}

}  // namespace

void Streams::expect(std::shared_ptr<Transfer> transfer) {
  wanted_.push_back({transfer, std::chrono::steady_clock::now() + kLooks[0], 0});
}

Streams::Moment Streams::due() const {
  Moment first = Moment::max();
  for (const auto& one : wanted_) first = std::min(first, one.due);
  return first == Moment::max() ? first : std::max(first, not_before_);
}

void Streams::look(Moment now, const Found& found) {
  if (now < due()) return;
  std::unordered_multimap<std::string_view, std::shared_ptr<Transfer>> sessions;
  for (auto& one : wanted_) {
    if (one.due > now) continue;
    if (auto transfer = one.transfer.lock()) {
      const std::string_view session = transfer->session;
      sessions.emplace(session, std::move(transfer));
      one.due = ++one.looks < std::size(kLooks) ? now + kLooks[one.looks] - kLooks[one.looks - 1] : Moment::max();
    } else {
      one.due = Moment::max();
    }
  }
  wanted_.erase(std::remove_if(wanted_.begin(), wanted_.end(), [](const Wanted& w) { return w.due == Moment::max(); }),
                wanted_.end());
  int current = -1;
  while (XrdLink* link = XrdLink::Find(current)) {  // holds the link until the next call
    const auto range = sessions.equal_range(session_of(link->ID));
    if (range.first == range.second) continue;
    const auto connection = connection_of(link->FDnum());
    if (!connection) continue;
    for (auto at = range.first; at != range.second; ++at) {
      const auto& reported = at->second->reported;
      if (connection->remote.address == at->second->peer &&
          std::find(reported.begin(), reported.end(), *connection) == reported.end())
        found(at->second, *connection, link->FDnum());
    }
  }
  const auto after = std::chrono::steady_clock::now();
  not_before_ = after + (after - now) * kRestPerLook;
}

}  // namespace scitags
