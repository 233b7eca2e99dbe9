#include "config.hh"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>

#include "XrdOuc/XrdOucEnv.hh"
#include "XrdOuc/XrdOucStream.hh"
#include "XrdSys/XrdSysError.hh"
#include "agent_link.hh"

namespace scitags {
namespace {

constexpr std::string_view kPrefix = "scitags.";
constexpr std::size_t kQueueMin = 16, kQueueMax = 1 << 20;
constexpr std::size_t kWaitMax = 1000;  // milliseconds
constexpr int kLineOctets = 16384;
constexpr char kNoInstance[] = "xrootd anon@localhost";  // outside of a server; without any, nothing would be read

// The words of one directive, taken one by one.
class Words {
 public:
  explicit Words(std::vector<std::string> words) : words_(std::move(words)) {}

  bool empty() const { return at_ == words_.size(); }
  const std::string& peek() const { return words_[at_]; }
  std::string take(const char* what) {
    if (empty()) throw ConfigError(std::string("there is no ") + what);
    return words_[at_++];
  }
  std::string rest(const char* what) {
    std::string whole = take(what);
    while (!empty()) whole += " " + words_[at_++];
    return whole;
  }
  void finish() const {
    if (!empty()) throw ConfigError("'" + words_[at_] + "' is one word too many");
  }

 private:
  std::vector<std::string> words_;
  std::size_t at_ = 0;
};

class Reader {
 public:
  void take(const std::string& directive, Words& words) {
    const auto known = directives_.find(directive);
    if (known == directives_.end()) throw ConfigError("there is no such directive; there are" + all());
    known->second(words);
    words.finish();
  }

  Settings settings;

 private:
  std::string all() const {
    std::string text;
    for (const auto& [name, _] : directives_) text += " " + name;
    return text;
  }

  void socket(Words& words) {
    const auto path = words.take("path");
    if (path.front() != '/') throw ConfigError("path '" + path + "' is not absolute");
    if (path.size() > AgentLink::max_path())
      throw ConfigError("path '" + path + "' is longer than the " + std::to_string(AgentLink::max_path()) +
                        " octets that a socket's may have");
    settings.socket = path;
  }

  static std::size_t number(Words& words, std::size_t low, std::size_t high) {
    const auto text = words.take("number");
    const bool is_number = text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
    const std::size_t value = is_number ? std::stoul(text) : high + 1;
    if (value < low || value > high)
      throw ConfigError("'" + text + "' is no number of " + std::to_string(low) + ".." + std::to_string(high));
    return value;
  }

  void queue(Words& words) { settings.queue = number(words, kQueueMin, kQueueMax); }

  void wait(Words& words) { settings.wait = std::chrono::milliseconds(number(words, 0, kWaitMax)); }

  void pass(Words& words) {
    const auto word = words.take("on or off");
    if (word != "on" && word != "off") throw ConfigError("'" + word + "' is neither on nor off");
    settings.passes_sockets = word == "on";
  }

  std::pair<int, int> tag(Words& words) {
    const int experiment = registry_.experiment(words.take("experiment"));
    return {experiment, activity(experiment, words)};
  }

  int activity(int experiment, Words& words) {
    const int activity = registry_.activity(experiment, words.rest("activity"));
    if (scitag_of(experiment, activity) < kScitagMin)
      throw ConfigError("experiment " + std::to_string(experiment) + " with activity " + std::to_string(activity) +
                        " is no scitag: they begin at " + std::to_string(kScitagMin));
    return activity;
  }

  void map(Words& words) {
    std::vector<Condition> conditions;
    while (!words.empty() && Condition::kind_of(words.peek())) conditions.push_back(condition(words));
    if (conditions.empty())
      throw ConfigError("no condition (path, vo, role, user, host) stands before the experiment");
    const auto [experiment, activity] = tag(words);
    settings.rules.map(std::move(conditions), experiment, activity);
  }

  Condition condition(Words& words) {
    const auto kind = words.take("path, vo, role, user or host");
    return Condition::parse(kind, words.empty() ? "" : words.take("value"));
  }

  std::optional<Condition> condition_or_default(Words& words) {
    if (words.empty() || words.peek() != "default") return condition(words);
    words.take("default");
    return std::nullopt;
  }

  void map_experiment(Words& words) {
    auto by = condition_or_default(words);
    settings.rules.map_experiment(std::move(by), registry_.experiment(words.take("experiment")));
  }

  void map_activity(Words& words) {
    const int experiment = registry_.experiment(words.take("experiment"));
    auto by = condition_or_default(words);
    settings.rules.map_activity(experiment, std::move(by), activity(experiment, words));
  }

  void fallback(Words& words) {
    const auto [experiment, activity] = tag(words);
    settings.rules.set_default(experiment, activity);
  }

  Registry registry_;
  const std::map<std::string, std::function<void(Words&)>> directives_{
      {"default", [this](Words& words) { fallback(words); }},
      {"map", [this](Words& words) { map(words); }},
      {"map2act", [this](Words& words) { map_activity(words); }},
      {"map2exp", [this](Words& words) { map_experiment(words); }},
      {"pass", [this](Words& words) { pass(words); }},
      {"queue", [this](Words& words) { queue(words); }},
      {"registry", [this](Words& words) { registry_ = Registry(words.take("file")); }},
      {"socket", [this](Words& words) { socket(words); }},
      {"wait", [this](Words& words) { wait(words); }},
  };
};

// The file, each of our directives followed by the number of its line: XrdOucStream, which knows what applies to this
// server (if, set, continued lines), does not say where it is.
int numbered(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw ConfigError(path + " cannot be read: " + std::strerror(errno));
  const int copy = memfd_create("scitags", MFD_CLOEXEC);
  if (copy < 0) throw ConfigError(std::string("no memory for a copy of the configuration: ") + std::strerror(errno));
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto start = line.find_first_not_of(" \t");
    if (start != std::string::npos && line.compare(start, kPrefix.size(), kPrefix) == 0) {
      const auto end = std::min(line.find_first_of(" \t", start), line.size());
      line.insert(end, " " + std::to_string(number));
    }
    line.push_back('\n');
    for (std::size_t done = 0; done < line.size();) {
      const ssize_t octets = write(copy, line.data() + done, line.size() - done);
      if (octets < 0) throw ConfigError(std::string("the configuration cannot be copied: ") + std::strerror(errno));
      done += static_cast<std::size_t>(octets);
    }
  }
  lseek(copy, 0, SEEK_SET);
  return copy;
}

}  // namespace

Settings read_settings(const std::string& path, XrdOucEnv* environment, XrdSysError& log, bool echoes) {
  const char* instance = std::getenv("XRDINSTANCE");
  // Without a log: it would show each line with the number that we put there.
  XrdOucStream stream(nullptr, instance == nullptr ? kNoInstance : instance, environment, nullptr);
  stream.Attach(numbered(path), kLineOctets);
  Reader reader;
  int wrong = 0;
  while (const char* first = stream.GetMyFirstWord()) {
    const std::string directive = first;
    if (directive.compare(0, kPrefix.size(), kPrefix) != 0) continue;
    std::vector<std::string> words;
    while (const char* word = stream.GetWord()) words.emplace_back(word);
    std::string where = path;
    if (!words.empty()) {
      where += ":" + words.front();
      words.erase(words.begin());
    }
    if (echoes) {
      std::string line = directive;
      for (const auto& word : words) line += " " + word;
      log.Say("=====> ", line.c_str());
    }
    try {
      Words left(std::move(words));
      reader.take(directive.substr(kPrefix.size()), left);
    } catch (const ConfigError& error) {
      log.Say("Config failure: ", where.c_str(), ": ", directive.c_str(), ": ", error.what());
      ++wrong;
    }
  }
  if (wrong != 0) throw ConfigError(std::to_string(wrong) + " of the scitags lines in " + path + " cannot be used");
  return std::move(reader.settings);
}

}  // namespace scitags
