#include "file_system.hh"

namespace scitags {

XrdSfsFile* FileSystem::newFile(char* user, int monitor) {
  auto* file = wrapped_.newFile(user, monitor);
  return file == nullptr ? nullptr : new File(room_, file);
}

XrdSfsFile* FileSystem::newFile(XrdOucErrInfo& error) {
  auto* file = wrapped_.newFile(error);
  return file == nullptr ? nullptr : new File(room_, file);
}

}  // namespace scitags
