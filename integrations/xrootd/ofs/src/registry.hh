// Names of experiments and activities, as the registry (api.json) has them.
#pragma once

#include <map>
#include <optional>
#include <stdexcept>
#include <string>

namespace scitags {

// Something that the site has to put right: what is wrong, and with which value.
struct ConfigError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Registry {
 public:
  Registry() = default;
  // api.json, or what `scitags registry update` keeps of it. Raises ConfigError.
  explicit Registry(const std::string& path);

  // A number, or a name in any case. Raises ConfigError.
  int experiment(const std::string& text) const;
  int activity(int experiment, const std::string& text) const;

 private:
  struct Experiment {
    int id;
    std::map<std::string, int> activities;
  };
  std::map<std::string, Experiment> experiments_;  // names in lower case
  std::string path_;
};

}  // namespace scitags
