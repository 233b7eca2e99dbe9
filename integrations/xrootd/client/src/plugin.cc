// What XRootD's client asks its plug-ins for.
#include <map>
#include <string>

#include "XrdVersion.hh"
#include "file.hh"
#include "tagging.hh"

namespace {

class Factory final : public XrdCl::PlugInFactory {
 public:
  explicit Factory(const std::map<std::string, std::string>& settings) : tagging_(settings) {}

  XrdCl::FilePlugIn* CreateFile(const std::string&) override { return new scitags::File(tagging_); }
  // Nothing but files moves data; the client goes on without.
  XrdCl::FileSystemPlugIn* CreateFileSystem(const std::string&) override { return nullptr; }

 private:
  const scitags::Tagging tagging_;
};

}  // namespace

// Without this the client refuses the library.
#pragma GCC visibility push(default)
XrdVERSIONINFO(XrdClGetPlugIn, scitags);
#pragma GCC visibility pop

extern "C" __attribute__((visibility("default"))) void* XrdClGetPlugIn(const void* settings) {
  static const std::map<std::string, std::string> none;
  const auto* given = static_cast<const std::map<std::string, std::string>*>(settings);
  return static_cast<XrdCl::PlugInFactory*>(new Factory(given == nullptr ? none : *given));
}
