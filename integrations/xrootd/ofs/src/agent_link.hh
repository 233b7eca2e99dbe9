// The agent's Unix socket, seen from the sender's side. It may be absent, restarted, busy or stuck at any time.
#pragma once

#include <sys/un.h>

#include <string>
#include <vector>

namespace scitags {

class AgentLink {
 public:
  enum class Outcome {
    kSent,
    kBusy,     // the agent has not read what it was sent before
    kAbsent,   // there is none; reason() says why
    kRefused,  // the kernel does not take this message; reason() says why
  };

  // The path must fit a socket's address (max_path()). receives_answers: requests are to be answered.
  explicit AgentLink(const std::string& path, bool receives_answers = false);
  ~AgentLink();
  AgentLink(const AgentLink&) = delete;
  AgentLink& operator=(const AgentLink&) = delete;

  static std::size_t max_path() { return sizeof(sockaddr_un::sun_path) - 1; }

  // Never blocks. The descriptors stay the caller's.
  Outcome send(const std::string& message, const std::vector<int>& descriptors);

  // Return when there may be room again, at the latest after so many milliseconds.
  void wait_for_room(int milliseconds) const;

  // The next answer to a request; false when none comes in so many milliseconds.
  bool wait_for_answer(int milliseconds);

  const char* reason() const;

 private:
  bool connect();
  bool connect_as(int type);
  void disconnect();
  Outcome failed(int error);

  sockaddr_un address_{};
  const bool receives_answers_;
  int socket_ = -1;
  int error_ = 0;
};

}  // namespace scitags
