// A file of the server, wrapped: the transfer begins when it is open and ends when it is closed or gone.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "XrdSfs/XrdSfsInterface.hh"
#include "XrdVersion.hh"
#include "reporter.hh"
#include "rules.hh"
#include "third_party.hh"

namespace scitags {

// What all files share.
struct Room {
  Reporter& reporter;
  const Rules& rules;
  RootCopies root_copies;
};

class File : public XrdSfsFile {
 public:
  // Takes the wrapped file over.
  File(Room& room, XrdSfsFile* wrapped) : XrdSfsFile(*wrapped), room_(room), wrapped_(wrapped) {}
  ~File() override { end(); }

  int open(const char* path, XrdSfsFileOpenMode mode, mode_t create, const XrdSecEntity* client,
           const char* opaque) override;
  int close() override;

  XrdSfsXferSize read(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size) override;
  int read(XrdSfsAio* request) override;
  XrdSfsXferSize readv(XrdOucIOVec* parts, int count) override;
  XrdSfsXferSize pgRead(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size, uint32_t* checksums,
                        uint64_t options) override;
  int pgRead(XrdSfsAio* request, uint64_t options) override;
  int SendData(XrdSfsDio* out, XrdSfsFileOffset offset, XrdSfsXferSize size) override;
  XrdSfsXferSize write(XrdSfsFileOffset offset, const char* buffer, XrdSfsXferSize size) override;
  int write(XrdSfsAio* request) override;
  XrdSfsXferSize writev(XrdOucIOVec* parts, int count) override;
  XrdSfsXferSize pgWrite(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size, uint32_t* checksums,
                         uint64_t options) override;
  int pgWrite(XrdSfsAio* request, uint64_t options) override;
  int fctl(const int command, const char* arguments, XrdOucErrInfo& answer) override;

  // These move no data.
  XrdSfsXferSize read(XrdSfsFileOffset offset, XrdSfsXferSize size) override { return wrapped_->read(offset, size); }
  int fctl(const int command, int size, const char* arguments, const XrdSecEntity* client) override {
    return wrapped_->fctl(command, size, arguments, client);
  }
  int checkpoint(cpAct action, struct iov* range, int count) override {
    return wrapped_->checkpoint(action, range, count);
  }
  const char* FName() override { return wrapped_->FName(); }
  int getMmap(void** address, off_t& size) override { return wrapped_->getMmap(address, size); }
  int stat(struct stat* buffer) override { return wrapped_->stat(buffer); }
  int sync() override { return wrapped_->sync(); }
  int sync(XrdSfsAio* request) override { return wrapped_->sync(request); }
  int truncate(XrdSfsFileOffset size) override { return wrapped_->truncate(size); }
  int getCXinfo(char type[4], int& size) override { return wrapped_->getCXinfo(type, size); }
  void setXio(XrdSfsXio* exchange) override { wrapped_->setXio(exchange); }
#if XrdVNUMBER >= 60000
  XrdSfsXferSize read(XrdOucRangeList& parts) override { return wrapped_->read(parts); }
  // Of one of the server's files, which all are ours; what is wrapped takes it for one of its own kind.
  int Clone(XrdSfsFile& source) override { return wrapped_->Clone(*static_cast<File&>(source).wrapped_); }
  int Clone(const std::vector<XrdOucCloneSeg>& parts) override { return wrapped_->Clone(parts); }
#endif

 private:
  void begin(const char* path, bool is_upload, const XrdSecEntity& client, std::string_view opaque);
  std::optional<Scitag> tag_of(const char* path, const XrdSecEntity& client, std::string_view opaque);
  bool is_new(const Connection& connection);
  void look_for_streams() noexcept;
  void look_for_sockets();
  void report_sockets();
  void end();
  void moved(std::atomic<std::uint64_t> Transfer::*counter, long long octets);
  void was_read(long long octets);
  void was_written(long long octets) { moved(&Transfer::octets_written, octets); }
  XrdSfsAio* counted(XrdSfsAio* request);

  Room& room_;
  std::unique_ptr<XrdSfsFile> wrapped_;
  std::shared_ptr<Transfer> transfer_;
  int descriptor_ = -1;  // for sendfile()
  HttpCopy* copy_ = nullptr;
  unsigned opened_before_ = 0;  // sockets of the copy: they asked for the size, and move no data
  unsigned opened_known_ = 0;
  std::vector<Connection> reported_;
  std::atomic<unsigned> looks_left_{0};  // for streams, before what is read is sent
  std::mutex looking_;
  bool is_announced_ = false;
};

}  // namespace scitags
