#include "event.hh"

#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <ctime>

namespace scitags {
namespace {

std::string identity;

std::string instant(Clock::time_point time) {
  const auto since = time.time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
  const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(since - seconds).count();
  const std::time_t whole = seconds.count();
  std::tm parts{};
  gmtime_r(&whole, &parts);
  char date[32], text[64];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text, sizeof text, "%s.%06ldZ", date, static_cast<long>(micros));
  return text;
}

void append_end(std::string& message, const char* name, const End& end) {
  // Addresses and interfaces' names have nothing that JSON would have to be spared.
  message.append(",\"").append(name).append("\":\"").append(end.address.text());
  message.append("\",\"").append(name).append("_port\":").append(std::to_string(end.port));
}

}  // namespace

void make_identity() {
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
  char text[64];
  std::snprintf(text, sizeof text, "xrootd-%ld-%" PRIx64 "-", static_cast<long>(getpid()),
                static_cast<std::uint64_t>(now));
  identity = text;
}

void append_event(std::string& message, State state, const Transfer& transfer, const Connection& connection,
                  bool is_first) {
  const bool is_end = state == State::kEnd;
  const End& source = transfer.is_upload ? connection.remote : connection.local;
  const End& destination = transfer.is_upload ? connection.local : connection.remote;
  message.append(is_end ? "{\"state\":\"end\"" : "{\"state\":\"start\"");
  append_end(message, "src", source);
  append_end(message, "dst", destination);
  message.append(",\"scitag\":").append(std::to_string(transfer.tag));
  message.append(",\"id\":\"").append(identity).append(std::to_string(transfer.number));
  message.append("\",\"application\":\"").append(transfer.application);
  message.append("\",\"start_time\":\"").append(instant(transfer.began)).append("\"");
  if (is_end) {
    const auto read = is_first ? transfer.octets_read.load() : 0;
    const auto written = is_first ? transfer.octets_written.load() : 0;
    message.append(",\"end_time\":\"").append(instant(transfer.ended));
    message.append("\",\"usage\":{\"sent\":").append(std::to_string(transfer.is_upload ? written : read));
    message.append(",\"received\":").append(std::to_string(transfer.is_upload ? read : written)).append("}");
  }
  message.append("}");
}

}  // namespace scitags
