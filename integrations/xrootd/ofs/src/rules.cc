#include "rules.hh"

#include <strings.h>

#include <algorithm>
#include <iterator>

namespace scitags {
namespace {

using Kind = Condition::Kind;

constexpr std::pair<const char*, Kind> kWords[] = {{"path", Kind::kPath}, {"vo", Kind::kVo},     {"vorg", Kind::kVo},
                                                   {"role", Kind::kRole}, {"user", Kind::kUser}, {"host", Kind::kHost}};
// Those of xrootd.pmark first and in its order, then ours.
constexpr Kind kExperimentBy[] = {Kind::kPath, Kind::kVo, Kind::kRole, Kind::kUser, Kind::kHost};
constexpr Kind kActivityBy[] = {Kind::kUser, Kind::kRole, Kind::kVo, Kind::kPath, Kind::kHost};
constexpr int kDefaultActivity = 1;  // of every experiment in the registry: for those that have no rule

// The names of a list.
std::vector<std::string_view> names_in(std::string_view list) {
  std::vector<std::string_view> names;
  for (std::size_t at = 0; at < list.size();) {
    const auto end = std::min(list.find_first_of(" ,", at), list.size());
    if (end > at) names.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return names;
}

bool is_among(std::string_view list, std::string_view name) {
  const auto names = names_in(list);
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_below(std::string_view path, std::string_view directory) {
  if (path.substr(0, directory.size()) != directory) return false;
  return path.size() == directory.size() || directory.back() == '/' || path[directory.size()] == '/';
}

bool is_same_name(std::string_view one, std::string_view other) {
  return one.size() == other.size() && strncasecmp(one.data(), other.data(), one.size()) == 0;
}

}  // namespace

std::optional<Kind> Condition::kind_of(const std::string& word) {
  for (const auto& [name, kind] : kWords)
    if (word == name) return kind;
  return std::nullopt;
}

Condition Condition::parse(const std::string& word, const std::string& value) {
  const auto kind = kind_of(word);
  if (!kind) throw ConfigError("'" + word + "' is none of path, vo, role, user and host");
  if (value.empty()) throw ConfigError("nothing stands behind '" + word + "'");
  Condition condition(*kind, value);
  if (*kind == Kind::kPath && value.front() != '/') throw ConfigError("path '" + value + "' is not absolute");
  if (*kind == Kind::kHost) {
    condition.network_ = Network::parse(value);
    const bool looks_like_network = value.find_first_of(":/") != std::string::npos;
    if (looks_like_network && !condition.network_) throw ConfigError("host '" + value + "' is no network or address");
    const auto star = value.find('*', value.rfind("*.", 0) == 0 ? 1 : 0);
    if (star != std::string::npos) throw ConfigError("host '" + value + "': '*.' may stand at the beginning alone");
  }
  return condition;
}

bool Condition::holds(const Subject& subject) const {
  switch (kind_) {
    case Kind::kPath:
      return is_below(subject.path, value_);
    case Kind::kVo:
      return is_among(subject.vo, value_);
    case Kind::kRole:
      return is_among(subject.role, value_);
    case Kind::kUser:
      return subject.user == value_;
    case Kind::kHost:
      return is_host_of(subject);
  }
  return false;
}

bool Condition::is_host_of(const Subject& subject) const {
  if (network_) return subject.address && network_->holds(*subject.address);
  if (value_.rfind("*.", 0) != 0) return is_same_name(subject.host, value_);
  const std::string_view domain = std::string_view(value_).substr(1);
  return subject.host.size() > domain.size() &&
         is_same_name(subject.host.substr(subject.host.size() - domain.size()), domain);
}

// A proxy's attributes come as two lists, of their VOs and of their roles, each in the attributes' order: who has a role in
// one VO has not got it in another.
bool Condition::hold(const std::vector<Condition>& conditions, const Subject& subject) {
  const auto is_list = [](const Condition& one) { return one.kind_ == Kind::kVo || one.kind_ == Kind::kRole; };
  const auto holds = [](const Subject& whose) { return [&whose](const Condition& one) { return one.holds(whose); }; };
  if (!std::all_of(conditions.begin(), conditions.end(), holds(subject))) return false;
  const auto vos = names_in(subject.vo), roles = names_in(subject.role);
  if (vos.size() != roles.size()) return true;
  std::vector<Condition> of_lists;
  std::copy_if(conditions.begin(), conditions.end(), std::back_inserter(of_lists), is_list);
  for (std::size_t at = 0; at < vos.size(); ++at) {
    const Subject attribute{{}, vos[at], roles[at], {}, {}, {}};
    if (std::all_of(of_lists.begin(), of_lists.end(), holds(attribute))) return true;
  }
  return of_lists.empty();
}

void Rules::map(std::vector<Condition> conditions, int experiment, int activity) {
  maps_.emplace_back(std::move(conditions), scitag_of(experiment, activity));
}

void Rules::map_experiment(std::optional<Condition> condition, int experiment) {
  experiments_.add(std::move(condition), experiment);
}

void Rules::map_activity(int experiment, std::optional<Condition> condition, int activity) {
  activities_[experiment].add(std::move(condition), activity);
}

void Rules::set_default(int experiment, int activity) { default_ = scitag_of(experiment, activity); }

std::optional<Scitag> Rules::tag_of(const Subject& subject) const {
  for (const auto& [conditions, tag] : maps_)
    if (Condition::hold(conditions, subject)) return tag;
  const auto experiment = experiments_.decide(subject, kExperimentBy);
  if (!experiment) return default_;
  const auto choice = activities_.find(*experiment);
  if (choice == activities_.end()) return scitag_of(*experiment, kDefaultActivity);
  return scitag_of(*experiment, choice->second.decide(subject, kActivityBy).value_or(kDefaultActivity));
}

void Rules::Choice::add(std::optional<Condition> condition, int value) {
  if (condition)
    cases.emplace_back(std::move(*condition), value);
  else
    fallback = value;
}

std::optional<int> Rules::Choice::decide(const Subject& subject, const Kind (&order)[5]) const {
  for (const Kind kind : order) {
    const std::pair<Condition, int>* best = nullptr;
    for (const auto& one : cases)
      // The longest path, and of other kinds the first line.
      if (one.first.kind() == kind && one.first.holds(subject) &&
          (best == nullptr || (kind == Kind::kPath && one.first.length() > best->first.length())))
        best = &one;
    if (best != nullptr) return best->second;
  }
  return fallback;
}

}  // namespace scitags
