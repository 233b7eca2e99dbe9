#include "tag.hh"

namespace scitags {
namespace {

constexpr std::size_t kMaxDigits = 10;  // leading zeros are somebody's habit
constexpr std::string_view kParameter = "scitag.flow";

}  // namespace

Scitag parse_scitag(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  if (text.empty() || text.size() > kMaxDigits) return kUnreadable;
  long long value = 0;
  for (char digit : text) {
    if (digit < '0' || digit > '9') return kUnreadable;
    value = value * 10 + (digit - '0');
  }
  return value >= kScitagMin && value <= kScitagMax ? static_cast<Scitag>(value) : kUnreadable;
}

std::optional<std::string_view> parameter(std::string_view opaque, std::string_view name) {
  while (!opaque.empty()) {
    const auto end = opaque.find_first_of("&?");
    const auto one = opaque.substr(0, end);
    if (one.size() > name.size() && one[name.size()] == '=' && one.substr(0, name.size()) == name)
      return one.substr(name.size() + 1);
    if (end == std::string_view::npos) break;
    opaque.remove_prefix(end + 1);
  }
  return std::nullopt;
}

std::optional<Scitag> scitag_in(std::string_view opaque) {
  const auto text = parameter(opaque, kParameter);
  if (!text) return std::nullopt;
  return parse_scitag(*text);
}

}  // namespace scitags
