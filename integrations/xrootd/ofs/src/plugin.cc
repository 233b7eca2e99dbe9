// What xrootd finds in the library: xrootd.fslib ++ libXrdScitags.so, http.exthandler xrdtpc libXrdScitags.so
#include <dlfcn.h>

#include <string>

#include "XrdOuc/XrdOucEnv.hh"
#include "XrdSys/XrdSysError.hh"
#include "XrdVersion.hh"
#include "config.hh"
#include "curl_sockets.hh"
#include "file_system.hh"
#include "third_party.hh"

namespace {

constexpr char kCopyLibrary[] = "libXrdHttpTPC-" XRDPLUGIN_SOVERSION ".so";
constexpr char kCopyEntry[] = "XrdHttpGetExtHandler";

}  // namespace

#define SCITAGS_EXPORT extern "C" __attribute__((visibility("default")))

SCITAGS_EXPORT XrdSfsFileSystem* XrdSfsGetFileSystem2(XrdSfsFileSystem* native, XrdSysLogger* logger,
                                                      const char* config, XrdOucEnv* environment) {
  // All of this lives as long as the server.
  static auto& log = *new XrdSysError(logger, "scitags_");
  if (native == nullptr) {
    log.Say("Config failure: scitags wraps a file system: xrootd.fslib ++ libXrdScitags.so");
    return nullptr;
  }
  try {
    auto& settings = *new scitags::Settings(scitags::read_settings(config == nullptr ? "" : config, environment, log, true));
    auto& reporter = *new scitags::Reporter(log, settings);
    auto& room = *new scitags::Room{reporter, settings.rules, {}};
    log.Say("++++++ scitags: transfers are told to the agent at ", settings.socket.c_str());
    return new scitags::FileSystem(*native, room);
  } catch (const scitags::ConfigError& error) {
    log.Say("Config failure: scitags: ", error.what());
    return nullptr;
  }
}

SCITAGS_EXPORT XrdHttpExtHandler* XrdHttpGetExtHandler(XrdSysError* log, const char* config, const char* parameters,
                                                       XrdOucEnv* environment) {
  const std::string path = parameters == nullptr || *parameters == '\0' ? kCopyLibrary : parameters;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* entry = library == nullptr ? nullptr : dlsym(library, kCopyEntry);
  if (entry == nullptr) {
    log->Say("Config failure: scitags: ", dlerror());
    return nullptr;
  }
  auto* wrapped = reinterpret_cast<decltype(&XrdHttpGetExtHandler)>(entry)(log, config, nullptr, environment);
  if (wrapped == nullptr) return nullptr;
  if (!scitags::watch_curl_sockets(library))
    log->Say("Config warning: scitags: the connections of third-party copies by HTTP cannot be seen in ", path.c_str());
  return new scitags::CopyHandler(wrapped);
}

// Without these the server refuses the library.
#pragma GCC visibility push(default)
XrdVERSIONINFO(XrdSfsGetFileSystem2, scitags);
XrdVERSIONINFO(XrdHttpGetExtHandler, scitags);
#pragma GCC visibility pop
