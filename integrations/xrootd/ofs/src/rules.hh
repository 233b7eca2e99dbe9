// Which tag a transfer gets that brings none: by path, VO, role, user and host.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "address.hh"
#include "registry.hh"
#include "tag.hh"

namespace scitags {

// What rules may ask of a transfer. vo and role are lists, separated by blanks or commas.
struct Subject {
  std::string_view path, vo, role, user, host;
  std::optional<Address> address;
};

class Condition {
 public:
  enum class Kind { kPath, kVo, kRole, kUser, kHost };

  // kind is a word of the configuration. Raises ConfigError.
  static Condition parse(const std::string& kind, const std::string& value);
  static std::optional<Kind> kind_of(const std::string& word);

  bool holds(const Subject& subject) const;
  // All of them; VO and role of the same attribute of a proxy, where the subject's lists say which belong together.
  static bool hold(const std::vector<Condition>& conditions, const Subject& subject);
  Kind kind() const { return kind_; }
  std::size_t length() const { return value_.size(); }

 private:
  Condition(Kind kind, std::string value) : kind_(kind), value_(std::move(value)) {}
  bool is_host_of(const Subject& subject) const;

  Kind kind_;
  std::string value_;
  std::optional<Network> network_;
};

class Rules {
 public:
  void map(std::vector<Condition> conditions, int experiment, int activity);
  void map_experiment(std::optional<Condition> condition, int experiment);  // none: the default
  void map_activity(int experiment, std::optional<Condition> condition, int activity);
  void set_default(int experiment, int activity);

  // Nothing when no rule fits and there is no default.
  std::optional<Scitag> tag_of(const Subject& subject) const;

 private:
  // The conditions of map2exp, or of the map2act of one experiment, and what they stand for.
  struct Choice {
    std::vector<std::pair<Condition, int>> cases;
    std::optional<int> fallback;

    void add(std::optional<Condition> condition, int value);
    std::optional<int> decide(const Subject& subject, const Condition::Kind (&order)[5]) const;
  };

  std::vector<std::pair<std::vector<Condition>, Scitag>> maps_;
  Choice experiments_;
  std::map<int, Choice> activities_;
  std::optional<Scitag> default_;
};

}  // namespace scitags
