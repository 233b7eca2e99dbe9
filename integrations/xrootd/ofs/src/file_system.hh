// The file system of the server, wrapped: every file that is opened through it is one of ours.
#pragma once

#include "XrdSfs/XrdSfsInterface.hh"
#include "file.hh"

namespace scitags {

class FileSystem : public XrdSfsFileSystem {
 public:
  FileSystem(XrdSfsFileSystem& wrapped, Room& room) : wrapped_(wrapped), room_(room) {
    FeatureSet = wrapped.Features();
  }

  XrdSfsFile* newFile(char* user, int monitor) override;
  XrdSfsFile* newFile(XrdOucErrInfo& error) override;

  XrdSfsDirectory* newDir(char* user, int monitor) override { return wrapped_.newDir(user, monitor); }
  XrdSfsDirectory* newDir(XrdOucErrInfo& error) override { return wrapped_.newDir(error); }
  int chksum(csFunc function, const char* name, const char* path, XrdOucErrInfo& error, const XrdSecEntity* client,
             const char* opaque) override {
    return wrapped_.chksum(function, name, path, error, client, opaque);
  }
  int chmod(const char* path, XrdSfsMode mode, XrdOucErrInfo& error, const XrdSecEntity* client,
            const char* opaque) override {
    return wrapped_.chmod(path, mode, error, client, opaque);
  }
  void Connect(const XrdSecEntity* client) override { wrapped_.Connect(client); }
  void Disc(const XrdSecEntity* client) override { wrapped_.Disc(client); }
  void EnvInfo(XrdOucEnv* environment) override { wrapped_.EnvInfo(environment); }
  int exists(const char* path, XrdSfsFileExistence& found, XrdOucErrInfo& error, const XrdSecEntity* client,
             const char* opaque) override {
    return wrapped_.exists(path, found, error, client, opaque);
  }
  int FAttr(XrdSfsFACtl* request, XrdOucErrInfo& error, const XrdSecEntity* client) override {
    return wrapped_.FAttr(request, error, client);
  }
  int FSctl(const int command, XrdSfsFSctl& arguments, XrdOucErrInfo& error, const XrdSecEntity* client) override {
    return wrapped_.FSctl(command, arguments, error, client);
  }
  int fsctl(const int command, const char* arguments, XrdOucErrInfo& error, const XrdSecEntity* client) override {
    return wrapped_.fsctl(command, arguments, error, client);
  }
  int getChkPSize() override { return wrapped_.getChkPSize(); }
  int getStats(char* buffer, int size) override { return wrapped_.getStats(buffer, size); }
  const char* getVersion() override { return wrapped_.getVersion(); }
  int gpFile(gpfFunc& action, XrdSfsGPFile& request, XrdOucErrInfo& error, const XrdSecEntity* client) override {
    return wrapped_.gpFile(action, request, error, client);
  }
  int mkdir(const char* path, XrdSfsMode mode, XrdOucErrInfo& error, const XrdSecEntity* client,
            const char* opaque) override {
    return wrapped_.mkdir(path, mode, error, client, opaque);
  }
  int prepare(XrdSfsPrep& request, XrdOucErrInfo& error, const XrdSecEntity* client) override {
    return wrapped_.prepare(request, error, client);
  }
  int rem(const char* path, XrdOucErrInfo& error, const XrdSecEntity* client, const char* opaque) override {
    return wrapped_.rem(path, error, client, opaque);
  }
  int remdir(const char* path, XrdOucErrInfo& error, const XrdSecEntity* client, const char* opaque) override {
    return wrapped_.remdir(path, error, client, opaque);
  }
  int rename(const char* from, const char* to, XrdOucErrInfo& error, const XrdSecEntity* client,
             const char* opaque_from, const char* opaque_to) override {
    return wrapped_.rename(from, to, error, client, opaque_from, opaque_to);
  }
  int stat(const char* path, struct stat* buffer, XrdOucErrInfo& error, const XrdSecEntity* client,
           const char* opaque) override {
    return wrapped_.stat(path, buffer, error, client, opaque);
  }
  int stat(const char* path, mode_t& mode, XrdOucErrInfo& error, const XrdSecEntity* client,
           const char* opaque) override {
    return wrapped_.stat(path, mode, error, client, opaque);
  }
  int truncate(const char* path, XrdSfsFileOffset size, XrdOucErrInfo& error, const XrdSecEntity* client,
               const char* opaque) override {
    return wrapped_.truncate(path, size, error, client, opaque);
  }

 private:
  XrdSfsFileSystem& wrapped_;
  Room& room_;
};

}  // namespace scitags
