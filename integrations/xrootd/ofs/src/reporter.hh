// What tells the agent: a bounded queue and one thread that sends. Whoever moves data only puts something in the queue.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent_link.hh"
#include "announcer.hh"
#include "config.hh"
#include "draining.hh"
#include "event.hh"
#include "streams.hh"
#include "transfer.hh"

class XrdSysError;

namespace scitags {

// Since the start of this process.
struct Counters {
  std::atomic<std::uint64_t> sent{0};      // events that the agent's socket took
  std::atomic<std::uint64_t> dropped{0};   // transfers not reported, as the queue was full
  std::atomic<std::uint64_t> untagged{0};  // transfers without a tag that no rule fits
  std::atomic<std::uint64_t> unseen{0};    // transfers whose connection is not to be found
};

class Reporter {
 public:
  Reporter(XrdSysError& log, const Settings& settings);

  // A transfer has begun on this connection. Returns when its packets are marked, or the time for that is over (by
  // default there is none: at once). False when the queue is full: then nothing more is to be said of it.
  // descriptor is that of the connection's socket, and stays the caller's.
  bool begin(std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor);

  // It uses another connection, too.
  void add(std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor);

  // It has ended. What begin() took is never dropped here.
  void end(std::shared_ptr<Transfer> transfer);

  // Whether a start that were put now would be waited for.
  bool waits() const { return is_present_ && announcer_.waits(); }

  Counters counters;

 private:
  enum class Kind { kBegin, kAdd, kEnd };
  struct Item {
    Kind kind;
    std::shared_ptr<Transfer> transfer;
    Connection connection;
    int descriptor;
    Clock::time_point time;
    bool is_told = false;
  };
  struct Message {
    std::string text;
    std::vector<int> descriptors;
    std::size_t events = 0, starts = 0;
  };

  void put_start(Kind kind, std::shared_ptr<Transfer> transfer, const Connection& connection, int descriptor);
  bool announce(const Transfer& transfer, const Connection& connection, int descriptor) noexcept;
  void put(Item item) noexcept;
  int copy_of(int descriptor);
  void ensure_running();
  [[noreturn]] void run();
  std::deque<Item> next_items();
  void report(Item& item);
  void report_start(Item& item);
  void report_end(const Transfer& transfer);
  void report_streams();
  void report_stream(const std::shared_ptr<Transfer>& transfer, const Connection& connection, int descriptor);
  void append(State state, const Transfer& transfer, const Connection& connection, bool is_first, int descriptor);
  void flush();
  void let_go_of_descriptors();
  void say_whether_present(bool is_present);
  void say_what_was_dropped();

  XrdSysError& log_;
  AgentLink link_;
  Announcer announcer_;
  const std::size_t max_starts_;
  const bool passes_sockets_;
  std::once_flag started_;

  std::atomic<std::size_t> waiting_starts_{0}, waiting_descriptors_{0};
  std::atomic<bool> is_present_{true};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Item> items_;
  bool is_asleep_ = false;

  // Of the thread alone.
  Streams streams_;
  Draining draining_;
  std::chrono::steady_clock::time_point busy_at_{};
  Message message_;
  bool has_said_ = false;
  std::uint64_t drops_said_ = 0;
};

}  // namespace scitags
