#include "reporter.hh"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "XrdSys/XrdSysError.hh"
#include "event.hh"

namespace scitags {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kMessageOctets = 32 << 10;  // well below what a socket takes by default
constexpr std::size_t kMessageDescriptors = 16;
// Copies of descriptors that may wait: each keeps its connection open, and counts against the server's own limit.
constexpr std::size_t kWaitingDescriptors = 64;
constexpr int kFirstCopy = 64;
constexpr int kBusyMilliseconds = 200;
constexpr milliseconds kFirstRetry(50), kLastRetry(1000);
// To wake a thread costs the server more than all else here does: for a moment after an event ours looks by itself. Not
// more often than this: beside a server that opens thousands of files a second, each look takes a processor from it.
constexpr milliseconds kLookEvery(2);
constexpr milliseconds kLookFor(10);
constexpr auto kDropsSaidEvery = std::chrono::minutes(1);

}  // namespace

Reporter::Reporter(XrdSysError& log, const Settings& settings)
    : log_(log),
      link_(settings.socket),
      announcer_(log, settings.socket, settings.wait),
      max_starts_(settings.queue),
      passes_sockets_(settings.passes_sockets) {}

bool Reporter::begin(std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor) {
  if (waiting_starts_.fetch_add(1) >= max_starts_) {
    --waiting_starts_;
    ++counters.dropped;
    return false;
  }
  put_start(Kind::kBegin, std::move(transfer), connection, descriptor);
  return true;
}

void Reporter::add(std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor) {
  ++waiting_starts_;
  put_start(Kind::kAdd, std::move(transfer), connection, descriptor);
}

void Reporter::end(std::shared_ptr<Transfer> transfer) {
  put({Kind::kEnd, std::move(transfer), {}, -1, Clock::now()});
}

void Reporter::put_start(Kind kind, std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor) {
  const bool is_told = announce(*transfer, connection, descriptor);
  put({kind, std::move(transfer), connection, is_told ? -1 : copy_of(descriptor), {}, is_told});
}

// Where it is not known whether the agent has heard, it is told once more, by the queue: it counts an id once.
bool Reporter::announce(const Transfer& transfer, const Connection& connection, int descriptor) noexcept try {
  if (transfer.tag == kUnreadable || !waits()) return false;
  ensure_running();
  std::string event;
  append_event(event, State::kStart, transfer, connection, true);
  return announcer_.announce(event, passes_sockets_ ? descriptor : -1);
} catch (...) {
  return false;
}

// The thread comes with the first transfer: xrootd may fork after it has loaded its plug-ins.
void Reporter::ensure_running() {
  std::call_once(started_, [this] {
    make_identity();
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the server's
    std::thread(&Reporter::run, this).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  });
}

// No lack of memory or threads becomes the server's trouble: the event is dropped, and the agent ends by itself a transfer
// whose connection is gone.
void Reporter::put(Item item) noexcept {
  bool must_wake = false;
  try {
    ensure_running();
    const std::lock_guard<std::mutex> guard(mutex_);
    items_.push_back(std::move(item));
    must_wake = is_asleep_;
    is_asleep_ = false;
  } catch (...) {
    ++counters.dropped;
  }
  if (must_wake) wake_.notify_one();
}

// By the time an event is sent its connection may be closed, and its descriptor another's: so a copy is kept.
int Reporter::copy_of(int descriptor) {
  if (!passes_sockets_ || descriptor < 0 || !is_present_) return -1;
  if (waiting_descriptors_.fetch_add(1) < kWaitingDescriptors) {
    const int copy = fcntl(descriptor, F_DUPFD_CLOEXEC, kFirstCopy);
    if (copy >= 0) return copy;
  }
  --waiting_descriptors_;
  return -1;
}

void Reporter::run() {
  pthread_setname_np(pthread_self(), "scitags");
  while (true) {
    auto items = next_items();
    draining_.look(std::chrono::steady_clock::now(), [this](const Transfer& transfer) { report_end(transfer); });
    for (Item& item : items) report(item);
    report_streams();
    flush();
    say_what_was_dropped();
  }
}

std::deque<Reporter::Item> Reporter::next_items() {
  std::deque<Item> items;
  std::unique_lock<std::mutex> lock(mutex_);
  const auto due = std::min(streams_.due(), draining_.due());
  const auto something = [this] { return !items_.empty(); };
  const auto until = std::min(due, busy_at_ + kLookFor);
  while (items_.empty() && std::chrono::steady_clock::now() < until) {
    lock.unlock();
    std::this_thread::sleep_for(kLookEvery);
    lock.lock();
  }
  is_asleep_ = items_.empty();
  if (due == Streams::Moment::max())
    wake_.wait(lock, something);
  else
    wake_.wait_until(lock, due, something);
  is_asleep_ = false;
  items.swap(items_);
  if (!items.empty()) busy_at_ = std::chrono::steady_clock::now();
  return items;
}

void Reporter::report(Item& item) {
  if (item.kind == Kind::kEnd) {
    item.transfer->ended = item.time;
    streams_.look_back(item.transfer, [this](const auto&... of_a_stream) { report_stream(of_a_stream...); });
    if (Draining::is_needed(*item.transfer))
      draining_.add(item.transfer, std::chrono::steady_clock::now());
    else
      report_end(*item.transfer);
    return;
  }
  report_start(item);
  if (item.kind == Kind::kBegin && !item.transfer->session.empty()) streams_.expect(item.transfer);
}

void Reporter::report_start(Item& item) {
  auto& reported = item.transfer->reported;
  const bool is_new = !item.transfer->has_reported(item.connection);
  if (is_new && !item.is_told)
    append(State::kStart, *item.transfer, item.connection, reported.empty(), item.descriptor);
  if (is_new) reported.push_back(item.connection);
  if (is_new && !item.is_told) return;
  --waiting_starts_;
  counters.sent += item.is_told;
  if (item.descriptor >= 0) {
    close(item.descriptor);
    --waiting_descriptors_;
  }
}

void Reporter::report_end(const Transfer& transfer) {
  bool is_first = true;
  for (const Connection& connection : transfer.reported) {
    append(State::kEnd, transfer, connection, is_first, -1);
    is_first = false;
  }
}

void Reporter::report_streams() {
  streams_.look(std::chrono::steady_clock::now(),
                [this](const auto&... of_a_stream) { report_stream(of_a_stream...); });
}

void Reporter::report_stream(const std::shared_ptr<Transfer>& transfer, const Connection& connection, int descriptor) {
  ++waiting_starts_;
  append(State::kStart, *transfer, connection, false, copy_of(descriptor));
  transfer->reported.push_back(connection);
}

void Reporter::append(State state, const Transfer& transfer, const Connection& connection, bool is_first,
                      int descriptor) {
  // The descriptors of a message belong to its first events.
  const bool is_out_of_turn = descriptor >= 0 && message_.events > message_.descriptors.size();
  if (is_out_of_turn || message_.descriptors.size() >= kMessageDescriptors || message_.text.size() > kMessageOctets)
    flush();
  message_.text.push_back(message_.events == 0 ? '[' : ',');
  append_event(message_.text, state, transfer, connection, is_first);
  ++message_.events;
  message_.starts += state == State::kStart;
  if (descriptor >= 0) message_.descriptors.push_back(descriptor);
}

// Hand the message over, however long the agent takes. What comes meanwhile waits in the queue, which is bounded.
void Reporter::flush() {
  if (message_.events == 0) return;
  message_.text.push_back(']');
  auto pause = kFirstRetry;
  while (true) {
    const auto outcome = link_.send(message_.text, message_.descriptors);
    if (outcome == AgentLink::Outcome::kSent) {
      counters.sent += message_.events;
      say_whether_present(true);
      break;
    }
    if (outcome == AgentLink::Outcome::kBusy) {
      link_.wait_for_room(kBusyMilliseconds);
      continue;
    }
    if (outcome == AgentLink::Outcome::kRefused && message_.descriptors.empty()) {
      log_.Emsg("Report", "the agent's socket does not take a message:", link_.reason());
      counters.dropped += message_.events;
      break;
    }
    let_go_of_descriptors();
    if (outcome == AgentLink::Outcome::kRefused) continue;
    say_whether_present(false);
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kLastRetry);
  }
  let_go_of_descriptors();
  waiting_starts_ -= message_.starts;
  message_ = Message();
}

void Reporter::let_go_of_descriptors() {
  for (const int descriptor : message_.descriptors) close(descriptor);
  waiting_descriptors_ -= message_.descriptors.size();
  message_.descriptors.clear();
}

void Reporter::say_whether_present(bool is_present) {
  if (has_said_ && is_present == is_present_) return;
  has_said_ = true;
  is_present_ = is_present;
  if (is_present)
    log_.Say("------ scitags: the agent is there");
  else
    log_.Say("------ scitags: no agent: ", link_.reason(), "; transfers go on, and are reported when it comes");
}

void Reporter::say_what_was_dropped() {
  static thread_local auto said_at = std::chrono::steady_clock::time_point();
  const auto now = std::chrono::steady_clock::now();
  const auto dropped = counters.dropped.load();
  if (dropped == drops_said_ || now - said_at < kDropsSaidEvery) return;
  log_.Say("------ scitags: transfers not reported so far: ", std::to_string(dropped).c_str());
  drops_said_ = dropped;
  said_at = now;
}

}  // namespace scitags
