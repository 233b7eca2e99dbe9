#include "address.hh"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>

#include <cstring>

namespace scitags {
namespace {

constexpr int kMappedBits = 96;

Address mapped(const in_addr& ipv4) {
  Address address;
  address.octets[10] = address.octets[11] = 0xff;
  std::memcpy(address.octets.data() + 12, &ipv4, sizeof ipv4);
  return address;
}

Address plain(const in6_addr& ipv6) {
  Address address;
  std::memcpy(address.octets.data(), &ipv6, sizeof ipv6);
  return address;
}

}  // namespace

bool Address::is_ipv4() const {
  static constexpr std::uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(octets.data(), prefix, sizeof prefix) == 0;
}

std::string Address::text() const {
  char buffer[INET6_ADDRSTRLEN] = "";
  if (is_ipv4()) return inet_ntop(AF_INET, octets.data() + 12, buffer, sizeof buffer);
  std::string whole = inet_ntop(AF_INET6, octets.data(), buffer, sizeof buffer);
  char name[IF_NAMESIZE];
  if (zone != 0 && if_indextoname(zone, name) != nullptr) whole += std::string("%") + name;
  return whole;
}

std::optional<End> end_of(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* ipv4 = reinterpret_cast<const sockaddr_in*>(address);
    return End{mapped(ipv4->sin_addr), ntohs(ipv4->sin_port)};
  }
  if (address->sa_family == AF_INET6) {
    const auto* ipv6 = reinterpret_cast<const sockaddr_in6*>(address);
    End end{plain(ipv6->sin6_addr), ntohs(ipv6->sin6_port)};
    end.address.zone = ipv6->sin6_scope_id;
    return end;
  }
  return std::nullopt;
}

std::optional<Connection> connection_of(int descriptor) {
  sockaddr_storage remote{};
  socklen_t size = sizeof remote;
  if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&remote), &size) != 0) return std::nullopt;
  return connection_of(descriptor, reinterpret_cast<sockaddr*>(&remote));
}

std::optional<Connection> connection_of(int descriptor, const sockaddr* remote) {
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&local), &size) != 0) return std::nullopt;
  const auto near = end_of(reinterpret_cast<sockaddr*>(&local)), far = end_of(remote);
  if (!near || !far) return std::nullopt;
  return Connection{*near, *far};
}

std::optional<Network> Network::parse(const std::string& text) {
  const auto slash = text.find('/');
  const std::string host = text.substr(0, slash);
  Network network;
  in_addr ipv4{};
  in6_addr ipv6{};
  int width = 0, offset = 0;
  if (inet_pton(AF_INET, host.c_str(), &ipv4) == 1) {
    network.first = mapped(ipv4);
    width = 32, offset = kMappedBits;
  } else if (inet_pton(AF_INET6, host.c_str(), &ipv6) == 1) {
    network.first = plain(ipv6);
    width = 128;
  } else {
    return std::nullopt;
  }
  int bits = width;
  if (slash != std::string::npos) {
    const std::string length = text.substr(slash + 1);
    if (length.empty() || length.size() > 3 || length.find_first_not_of("0123456789") != std::string::npos)
      return std::nullopt;
    bits = std::stoi(length);
    if (bits > width) return std::nullopt;
  }
  network.bits = bits + offset;
  return network;
}

bool Network::holds(const Address& address) const {
  const std::size_t whole = static_cast<std::size_t>(bits) / 8;
  if (std::memcmp(address.octets.data(), first.octets.data(), whole) != 0) return false;
  const int rest = bits % 8;
  if (rest == 0) return true;
  const auto mask = static_cast<std::uint8_t>(0xff00 >> rest);
  return ((address.octets[whole] ^ first.octets[whole]) & mask) == 0;
}

}  // namespace scitags
