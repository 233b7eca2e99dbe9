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

// A client that moves less than this has no use for a second stream.
constexpr std::uint64_t kOctetsForStreams = 4 << 20;

constexpr std::size_t kNameOctets = 512;  // of "user.pid:descriptor@host"

std::string_view session_of(const char* name) {
  const char* colon = std::strchr(name, ':');
  return colon == nullptr ? std::string_view() : std::string_view(name, static_cast<std::size_t>(colon - name));
}

// The server's next connection after that with this descriptor: its descriptor, and its name; -1 when there is none.
// Not XrdLink::Find(), which takes a connection's lock while it holds that of the table: the server takes them the other
// way round as it closes a session with streams, and would stand still.
int next_link(int descriptor, char (&name)[kNameOctets]) {
  name[0] = '\0';
  XrdLink::getName(descriptor, name, kNameOctets);
  return descriptor;
}

// Call back for each of the server's connections whose session is wanted.
template <class Wanted, class Visit>
void visit_links(const Wanted& is_wanted, const Visit& visit) {
  char name[kNameOctets], again[kNameOctets];
  for (int descriptor = next_link(-1, name); descriptor >= 0; descriptor = next_link(descriptor, name)) {
    const auto session = session_of(name);
    if (!is_wanted(session)) continue;
    const auto connection = connection_of(descriptor);
    // Nobody holds it for us: it may have been closed, and its descriptor be another's.
    if (!connection || next_link(descriptor - 1, again) != descriptor || std::strcmp(name, again) != 0) continue;
    visit(session, *connection, descriptor);
  }
}

}  // namespace

void Streams::look_for(const std::shared_ptr<Transfer>& transfer, const Found& found) {
  visit_links([&](std::string_view session) { return session == transfer->session; },
              [&](std::string_view, const Connection& connection, int descriptor) {
                if (connection.remote.address == transfer->peer) found(transfer, connection, descriptor);
              });
}

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
  visit_links([&](std::string_view session) { return sessions.count(session) != 0; },
              [&](std::string_view session, const Connection& connection, int descriptor) {
                const auto range = sessions.equal_range(session);
                for (auto at = range.first; at != range.second; ++at) {
                  if (connection.remote.address == at->second->peer && !at->second->has_reported(connection))
                    found(at->second, connection, descriptor);
                }
              });
  rest_after(now);
}

void Streams::look_back(const std::shared_ptr<Transfer>& transfer, const Found& found) {
  const auto now = std::chrono::steady_clock::now();
  if (transfer->session.empty() || now < not_before_) return;
  if (transfer->octets_read + transfer->octets_written < kOctetsForStreams) return;
  look_for(transfer, [&](const std::shared_ptr<Transfer>& same, const Connection& connection, int descriptor) {
    if (!same->has_reported(connection)) found(same, connection, descriptor);
  });
  rest_after(now);
}

void Streams::rest_after(Moment began) {
  const auto now = std::chrono::steady_clock::now();
  not_before_ = now + (now - began) * kRestPerLook;
}

}  // namespace scitags
