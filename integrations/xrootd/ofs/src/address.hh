// Ends of connections, in a form that is copied and compared without allocation.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace scitags {

// IPv4 addresses are kept as IPv4-mapped ones, so that both ways in which a server may see them are one.
struct Address {
  std::array<std::uint8_t, 16> octets{};
  std::uint32_t zone = 0;  // of a link-local address

  bool operator==(const Address& other) const { return octets == other.octets; }
  bool is_ipv4() const;
  // As RFC 5952 has it, with the zone's name where there is a zone.
  std::string text() const;
};

struct End {
  Address address;
  std::uint16_t port = 0;

  bool operator==(const End& other) const { return port == other.port && address == other.address; }
};

struct Connection {
  End local, remote;

  bool operator==(const Connection& other) const { return local == other.local && remote == other.remote; }
};

// Nothing for what is neither IPv4 nor IPv6.
std::optional<End> end_of(const sockaddr* address);

// The two ends of a connected socket; nothing for anything else.
std::optional<Connection> connection_of(int descriptor);

// The same where the far end is known already, which spares a system call.
std::optional<Connection> connection_of(int descriptor, const sockaddr* remote);

// An address or a network as text ("2001:db8::/32", "192.0.2.1").
struct Network {
  Address first;
  int bits = 0;  // of 128

  static std::optional<Network> parse(const std::string& text);
  bool holds(const Address& address) const;
};

}  // namespace scitags
