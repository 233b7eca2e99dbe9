#include "tagging.hh"

#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "XrdCl/XrdClURL.hh"
#include "XrdOuc/XrdOucEnv.hh"
#include "XrdSys/XrdSysError.hh"
#include "XrdSys/XrdSysLogger.hh"
#include "config.hh"

namespace scitags {
namespace {

std::string setting(const std::map<std::string, std::string>& settings, const char* key, const char* variable) {
  if (const char* value = std::getenv(variable)) return value;
  const auto found = settings.find(key);
  return found == settings.end() ? std::string() : found->second;
}

bool is_root(const std::string& protocol) {
  return protocol == "root" || protocol == "roots" || protocol == "xroot" || protocol == "xroots";
}

// "//a/b" and "a/b" of a URL's path are "/a/b" of a rule's.
std::string path_of(const XrdCl::URL& url) {
  const auto& path = url.GetPath();
  const auto start = path.find_first_not_of('/');
  return start == std::string::npos ? "/" : "/" + path.substr(start);
}

// An IPv6 address stands in brackets in a URL, and without in a rule.
std::string host_of(const XrdCl::URL& url) {
  const auto& host = url.GetHostName();
  return !host.empty() && host.front() == '[' ? host.substr(1, host.find(']') - 1) : host;
}

}  // namespace

Tagging::Tagging(const std::map<std::string, std::string>& settings) {
  const auto tag = setting(settings, "tag", "SCITAGS_TAG");
  if (!tag.empty()) {
    const auto value = parse_scitag(tag);
    if (value == kUnreadable)
      std::cerr << "scitags: '" << tag << "' is no scitag of 65..65535: it is not used\n";
    else
      tag_ = value;
  }
  const auto rules = setting(settings, "rules", "SCITAGS_RULES");
  if (rules.empty()) return;
  XrdSysLogger logger(STDERR_FILENO, 0);
  XrdSysError log(&logger, "scitags_");
  XrdOucEnv environment;
  try {
    rules_ = read_settings(rules, &environment, log).rules;
  } catch (const std::exception& error) {
    std::cerr << "scitags: " << error.what() << ": its rules are not used\n";
  }
}

std::optional<Scitag> Tagging::tag_of(const std::string& text) const {
  const XrdCl::URL url(text);
  if (!url.IsValid() || !is_root(url.GetProtocol())) return std::nullopt;
  if (url.GetParams().count("scitag.flow") != 0) return std::nullopt;
  if (tag_) return tag_;
  const auto path = path_of(url), host = host_of(url);
  Subject subject{path, {}, {}, {}, host, {}};
  if (const auto network = Network::parse(host)) subject.address = network->first;
  return rules_.tag_of(subject);
}

std::string Tagging::tagged(const std::string& url) const {
  const auto tag = tag_of(url);
  if (!tag) return url;
  const auto query = url.find('?');
  const char* mark = query == std::string::npos ? "?" : query + 1 == url.size() || url.back() == '&' ? "" : "&";
  return url + mark + "scitag.flow=" + std::to_string(*tag);
}

}  // namespace scitags
