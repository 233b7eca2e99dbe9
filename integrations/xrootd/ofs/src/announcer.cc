#include "announcer.hh"

#include "XrdSys/XrdSysError.hh"

namespace scitags {
namespace {

constexpr std::size_t kAtOnce = 64;  // connections to the agent, and transfers that wait
// An agent that has been late once is not waited for in this time: of the transfers that begin while it is stuck, few wait.
constexpr std::chrono::seconds kRest(1);

}  // namespace

Announcer::Announcer(XrdSysError& log, const std::string& path, std::chrono::milliseconds patience)
    : log_(log), path_(path), patience_(patience) {}

bool Announcer::waits() const {
  return patience_.count() > 0 && std::chrono::steady_clock::now().time_since_epoch().count() >= not_before_;
}

bool Announcer::announce(const std::string& event, int descriptor) {
  const std::string message = "{\"request\":\"events\",\"events\":[" + event + "]}";
  const std::vector<int> descriptors(descriptor < 0 ? 0 : 1, descriptor);
  auto link = borrow();
  if (link == nullptr) return false;
  auto outcome = link->send(message, descriptors);
  // One agent after another: the link was to the first.
  if (outcome == AgentLink::Outcome::kAbsent) outcome = link->send(message, descriptors);
  const bool was_sent = outcome == AgentLink::Outcome::kSent;
  const bool in_time = was_sent && link->wait_for_answer(static_cast<int>(patience_.count()));
  // An answer that comes later must not be taken for that of the next one: such a link is given up.
  give_back(was_sent && !in_time ? nullptr : std::move(link));
  if (was_sent || outcome == AgentLink::Outcome::kBusy) has_answered(in_time);
  return in_time;
}

std::unique_ptr<AgentLink> Announcer::borrow() {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (borrowed_ >= kAtOnce) return nullptr;
  idle_.reserve(kAtOnce);
  auto link = idle_.empty() ? std::make_unique<AgentLink>(path_, true) : std::move(idle_.back());
  if (!idle_.empty()) idle_.pop_back();
  ++borrowed_;
  return link;
}

void Announcer::give_back(std::unique_ptr<AgentLink> link) {
  const std::lock_guard<std::mutex> guard(mutex_);
  --borrowed_;
  if (link != nullptr) idle_.push_back(std::move(link));
}

void Announcer::has_answered(bool in_time) {
  if (!in_time) not_before_ = (std::chrono::steady_clock::now() + kRest).time_since_epoch().count();
  if (is_late_.exchange(!in_time) == !in_time) return;
  const auto patience = std::to_string(patience_.count()) + " ms";
  if (in_time)
    log_.Say("------ scitags: the agent answers again within ", patience.c_str());
  else
    log_.Say("------ scitags: the agent did not answer within ", patience.c_str(),
             ": transfers go on, their first packets without a label");
}

}  // namespace scitags
