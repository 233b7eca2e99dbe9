// Scitags as requests carry them: an opaque of the URL, a header.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace scitags {

// experiment << 6 | activity, 65..65535; 0 stands for a tag that was there and is none.
using Scitag = std::uint16_t;

constexpr Scitag kUnreadable = 0;
constexpr int kScitagMin = 65, kScitagMax = 65535;
constexpr int kExperimentMax = 1023;
constexpr int kActivityMax = 63;

constexpr Scitag scitag_of(int experiment, int activity) {
  return static_cast<Scitag>(experiment << 6 | activity);
}

// A number of 65..65535 in decimal digits, blanks around it allowed; kUnreadable for anything else.
Scitag parse_scitag(std::string_view text);

// The value of one parameter of an opaque ("a=1&b=2"); nothing when it is not there. The first one counts.
std::optional<std::string_view> parameter(std::string_view opaque, std::string_view name);

// What an opaque says: nothing when it has no scitag.flow.
std::optional<Scitag> scitag_in(std::string_view opaque);

}  // namespace scitags
