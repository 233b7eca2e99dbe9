#include "registry.hh"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tag.hh"

namespace scitags {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::optional<int> number(const std::string& text) {
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  return std::stoi(text);
}

int checked(int value, int low, int high, const char* what) {
  if (value < low || value > high)
    throw ConfigError(std::string(what) + " " + std::to_string(value) + " is outside " + std::to_string(low) + ".." +
                      std::to_string(high));
  return value;
}

}  // namespace

Registry::Registry(const std::string& path) : path_(path) {
  std::ifstream file(path);
  if (!file) throw ConfigError("registry " + path + " cannot be read: " + std::strerror(errno));
  try {
    auto content = nlohmann::json::parse(file);
    if (content.contains("document")) content = nlohmann::json::parse(content.at("document").get<std::string>());
    for (const auto& one : content.at("experiments")) {
      Experiment experiment{checked(one.at("expId").get<int>(), 1, kExperimentMax, "experiment"), {}};
      for (const auto& activity : one.at("activities"))
        experiment.activities[lower(activity.at("activityName").get<std::string>())] =
            checked(activity.at("activityId").get<int>(), 0, kActivityMax, "activity");
      experiments_[lower(one.at("expName").get<std::string>())] = experiment;
    }
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError("registry " + path + " is none: " + error.what());
  }
}

int Registry::experiment(const std::string& text) const {
  if (const auto id = number(text)) return checked(*id, 1, kExperimentMax, "experiment");
  const auto found = experiments_.find(lower(text));
  if (found != experiments_.end()) return found->second.id;
  throw ConfigError(path_.empty() ? "experiment '" + text + "' is a name, and there is no scitags.registry line above it"
                                  : "experiment '" + text + "' is not in " + path_);
}

int Registry::activity(int experiment, const std::string& text) const {
  if (const auto id = number(text)) return checked(*id, 0, kActivityMax, "activity");
  for (const auto& [name, one] : experiments_) {
    if (one.id != experiment) continue;
    const auto found = one.activities.find(lower(text));
    if (found != one.activities.end()) return found->second;
    throw ConfigError("activity '" + text + "' is not among those of " + name + " in " + path_);
  }
  throw ConfigError(path_.empty() ? "activity '" + text + "' is a name, and there is no scitags.registry line above it"
                                  : "experiment " + std::to_string(experiment) + " is not in " + path_);
}

}  // namespace scitags
