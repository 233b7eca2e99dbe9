#include "application.hh"

#include <cctype>
#include <cstring>
#include <utility>

#include "XrdSec/XrdSecEntityAttr.hh"

namespace scitags {
namespace {

constexpr std::size_t kLongest = 64;
constexpr char kAttribute[] = "xrd.appname";  // where the server keeps the login's

bool is_plain(unsigned char one) { return std::isalnum(one) != 0 || std::strchr("._+-/@:", one) != nullptr; }

std::string made_plain(std::string name) {
  if (name.size() > kLongest) name.resize(kLongest);
  for (char& one : name)
    if (one == '\0' || !is_plain(static_cast<unsigned char>(one))) one = '_';
  return name;
}

}  // namespace

std::string application_of(const XrdSecEntity& client, bool is_copy) {
  if (is_copy) return "xrootd-tpc";
  if (std::strncmp(client.prot, "http", 4) == 0) return "xrootd-http";
  std::string name;
  if (client.eaAPI != nullptr) client.eaAPI->Get(kAttribute, name);
  return name.empty() ? "xrootd" : made_plain(std::move(name));
}

}  // namespace scitags
