// Which tag a file gets that a client opens, and the URL that says so.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "rules.hh"

namespace scitags {

class Tagging {
 public:
  // settings are those of the plug-in's file in client.plugins.d; the environment goes before them:
  //   tag,   $SCITAGS_TAG     the scitag of all files, 65..65535
  //   rules, $SCITAGS_RULES   a file with lines as the server plug-in's (scitags.map and others)
  // What is wrong is said on standard error, and files are then opened as if it were not there.
  explicit Tagging(const std::map<std::string, std::string>& settings);

  // The URL with scitag.flow in its opaque; as it is where it has one, where no tag applies, and for other protocols.
  std::string tagged(const std::string& url) const;

 private:
  std::optional<Scitag> tag_of(const std::string& url) const;

  std::optional<Scitag> tag_;
  Rules rules_;
};

}  // namespace scitags
