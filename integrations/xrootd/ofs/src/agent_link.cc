#include "agent_link.hh"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace scitags {

AgentLink::AgentLink(const std::string& path, bool receives_answers) : receives_answers_(receives_answers) {
  address_.sun_family = AF_UNIX;
  path.copy(address_.sun_path, max_path());
}

AgentLink::~AgentLink() { disconnect(); }

AgentLink::Outcome AgentLink::send(const std::string& message, const std::vector<int>& descriptors) {
  if (socket_ < 0 && !connect()) return Outcome::kAbsent;
  iovec part{const_cast<char*>(message.data()), message.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  std::vector<char> control;
  if (!descriptors.empty()) {
    const std::size_t octets = descriptors.size() * sizeof(int);
    control.resize(CMSG_SPACE(octets));
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(octets);
    std::memcpy(CMSG_DATA(rights), descriptors.data(), octets);
  }
  while (sendmsg(socket_, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
    if (errno != EINTR) return failed(errno);
  return Outcome::kSent;
}

AgentLink::Outcome AgentLink::failed(int error) {
  error_ = error;
  switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
      return Outcome::kBusy;
    case EMSGSIZE:
    case ETOOMANYREFS:
    case EBADF:
    case EINVAL:
      return Outcome::kRefused;
    default:
      disconnect();
      return Outcome::kAbsent;
  }
}

void AgentLink::wait_for_room(int milliseconds) const {
  // A datagram socket that is connected knows of the room in its peer's queue.
  pollfd one{socket_, POLLOUT, 0};
  poll(&one, 1, milliseconds);
}

bool AgentLink::wait_for_answer(int milliseconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd one{socket_, POLLIN, 0};
    const int ready = poll(&one, 1, static_cast<int>(std::max<decltype(left)>(left, 0)));
    if (ready < 0 && errno == EINTR) continue;
    char ignored;  // it is there: that is the answer
    if (ready > 0 && recv(socket_, &ignored, sizeof ignored, MSG_DONTWAIT | MSG_TRUNC) > 0) return true;
    return false;
  }
}

const char* AgentLink::reason() const { return std::strerror(error_); }

bool AgentLink::connect() {
  // Which of the two the agent was configured for is found out: the other one is refused with EPROTOTYPE.
  for (const int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    if (connect_as(type)) return true;
    error_ = errno;
    disconnect();
    if (error_ != EPROTOTYPE) break;
  }
  return false;
}

bool AgentLink::connect_as(int type) {
  socket_ = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_ < 0) return false;
  // An answer to a datagram needs an address: the kernel gives one that is in no directory.
  const sockaddr any{AF_UNIX, {}};
  if (receives_answers_ && type == SOCK_DGRAM && bind(socket_, &any, sizeof any.sa_family) != 0) return false;
  return ::connect(socket_, reinterpret_cast<const sockaddr*>(&address_), sizeof address_) == 0;
}

void AgentLink::disconnect() {
  if (socket_ >= 0) close(socket_);
  socket_ = -1;
}

}  // namespace scitags
