#include "file.hh"

#include <algorithm>
#include <cstring>

#include "XrdNet/XrdNetAddrInfo.hh"
#include "XrdOuc/XrdOucErrInfo.hh"
#include "XrdSec/XrdSecEntity.hh"
#include "XrdSfs/XrdSfsAio.hh"
#include "XrdSfs/XrdSfsDio.hh"
#include "XrdSfs/XrdSfsFlags.hh"
#include "application.hh"

namespace scitags {
namespace {

constexpr unsigned kLooksForStreams = 8;  // each goes over all of the server's connections
constexpr XrdSfsFileOpenMode kWriting = SFS_O_WRONLY | SFS_O_RDWR | SFS_O_CREAT | SFS_O_TRUNC;

std::string_view text(const char* string) { return string == nullptr ? std::string_view() : string; }

// An asynchronous request of the server's, which tells when it is done how much was moved.
class CountedAio final : public XrdSfsAio {
 public:
  CountedAio(XrdSfsAio* theirs, std::shared_ptr<Transfer> transfer) : transfer_(std::move(transfer)) {
    const auto notification = sfsAio.aio_sigevent;  // of this object
    sfsAio = theirs->sfsAio;
    sfsAio.aio_sigevent = notification;
    cksVec = theirs->cksVec;
    TIdent = theirs->TIdent;
    Result = theirs->Result;
    theirs_.store(theirs, std::memory_order_release);
  }
  void doneRead() override { done(&Transfer::octets_read, &XrdSfsAio::doneRead); }
  void doneWrite() override { done(&Transfer::octets_written, &XrdSfsAio::doneWrite); }
  void Recycle() override {
    theirs_.load(std::memory_order_acquire)->Recycle();
    delete this;
  }

 private:
  void done(std::atomic<std::uint64_t> Transfer::*octets, void (XrdSfsAio::*then)()) {
    auto* theirs = theirs_.load(std::memory_order_acquire);
    if (Result > 0) (*transfer_).*octets += static_cast<std::uint64_t>(Result);
    theirs->Result = Result;
    theirs->cksVec = cksVec;  // without one now where the storage made no checksums: the server makes them, then
    delete this;
    (theirs->*then)();
  }

  std::shared_ptr<Transfer> transfer_;
  // Stored last and loaded first: another thread ends the request than began it, told by a signal.
  std::atomic<XrdSfsAio*> theirs_{nullptr};
};

// "user.pid" of "user.pid:fd@host": what the connections of a root:// session have in common.
std::string session_of(const char* trace) {
  const char* colon = trace == nullptr ? nullptr : std::strchr(trace, ':');
  return colon == nullptr ? std::string() : std::string(trace, colon);
}

}  // namespace

int File::open(const char* path, XrdSfsFileOpenMode mode, mode_t create, const XrdSecEntity* client,
               const char* opaque) {
  const int code = wrapped_->open(path, mode, create, client, opaque);
  if (code != SFS_OK || client == nullptr) return code;
  try {
    begin(path, (mode & kWriting) != 0, *client, text(opaque));
  } catch (...) {  // no memory: the transfer goes on, untagged
    transfer_.reset();
  }
  return code;
}

int File::close() {
  const int code = wrapped_->close();
  end();
  return code;
}

void File::begin(const char* path, bool is_upload, const XrdSecEntity& client, std::string_view opaque) {
  copy_ = HttpCopy::current();
  const auto tag = tag_of(path, client, opaque);
  if (!copy_ && RootCopies::is_arrangement(opaque)) {
    const auto key = RootCopies::key_in(opaque);
    if (key && tag) room_.root_copies.remember(*key, *tag);
    return;
  }
  if (!tag) {
    ++room_.reporter.counters.untagged;
    return;
  }
  const bool is_copy = copy_ != nullptr || RootCopies::key_in(opaque).has_value();
  transfer_ = std::make_shared<Transfer>(*tag, is_upload, application_of(client, is_copy));
  if (copy_) {
    copy_->pass_on(*tag);
    opened_before_ = copy_->opened_so_far();
    // A small file's octets are written when its connection is closed again (6.2.1).
    copy_->set_before_close([this] {
      if (transfer_) look_for_sockets();
    });
    return;
  }
  const int descriptor = client.addrInfo == nullptr ? -1 : client.addrInfo->SockFD();
  const auto connection =
      descriptor < 0 ? std::nullopt : connection_of(descriptor, client.addrInfo->SockAddr());
  if (!connection) {
    ++room_.reporter.counters.unseen;
    transfer_.reset();
    return;
  }
  if (std::strncmp(client.prot, "http", 4) != 0) {
    transfer_->session = session_of(client.tident);
    transfer_->peer = connection->remote.address;
  } else if (!is_upload) {
    transfer_->descriptor = descriptor;
    transfer_->connection = connection;
  }
  is_announced_ = room_.reporter.begin(transfer_, *connection, descriptor);
  is_new(*connection);
  if (is_announced_ && !is_upload && !transfer_->session.empty()) looks_left_ = kLooksForStreams;
}

std::optional<Scitag> File::tag_of(const char* path, const XrdSecEntity& client, std::string_view opaque) {
  if (const auto tag = scitag_in(opaque)) return tag;
  if (copy_ && copy_->tag()) return copy_->tag();
  if (const auto key = RootCopies::key_in(opaque))
    if (const auto tag = room_.root_copies.find(*key)) return tag;
  Subject subject{text(path), text(client.vorg), text(client.role), text(client.name), text(client.host), {}};
  if (client.addrInfo != nullptr)
    if (const auto end = end_of(client.addrInfo->SockAddr())) subject.address = end->address;
  return room_.rules.tag_of(subject);
}

bool File::is_new(const Connection& connection) {
  if (std::find(reported_.begin(), reported_.end(), connection) != reported_.end()) return false;
  reported_.push_back(connection);
  return true;
}

// A client that has streams binds them as it begins to read: where their packets are waited for, they are to be known
// before the first answer goes by one of them.
void File::look_for_streams() noexcept try {
  if (looks_left_ == 0 || !room_.reporter.waits()) return;
  const std::lock_guard<std::mutex> guard(looking_);  // streams read in threads of their own, and each is to wait
  if (looks_left_ == 0) return;
  --looks_left_;
  Streams::look_for(transfer_, [this](const std::shared_ptr<Transfer>& transfer, const Connection& connection, int socket) {
    if (is_new(connection)) room_.reporter.add(transfer, connection, socket);
  });
} catch (...) {  // no memory: they are found a little later
}

// Those of an HTTP third-party copy come and go while it runs.
void File::look_for_sockets() {
  if (!copy_ || copy_ != HttpCopy::current() || copy_->opened_so_far() == opened_known_) return;
  try {
    report_sockets();
  } catch (...) {  // no memory: the copy goes on, and is reported without them
    opened_known_ = copy_->opened_so_far();
  }
}

void File::report_sockets() {
  opened_known_ = copy_->opened_so_far();
  auto sockets = copy_->sockets_after(opened_before_);
  if (sockets.empty()) sockets = copy_->sockets_after(0);
  for (const int socket : sockets) {
    const auto connection = connection_of(socket);
    if (!connection) {
      opened_known_ = 0;  // not yet connected: look again
      continue;
    }
    if (!is_new(*connection)) continue;
    if (is_announced_) {
      room_.reporter.add(transfer_, *connection, socket);
    } else if (!(is_announced_ = room_.reporter.begin(transfer_, *connection, socket))) {
      transfer_.reset();
      return;
    }
  }
}

void File::end() {
  if (copy_ && copy_ == HttpCopy::current()) copy_->set_before_close({});
  if (!transfer_) return;
  look_for_sockets();  // of a copy that had nothing to move
  if (is_announced_ && transfer_)
    room_.reporter.end(std::move(transfer_));
  else
    ++room_.reporter.counters.unseen;
  transfer_.reset();
  is_announced_ = false;
}

void File::moved(std::atomic<std::uint64_t> Transfer::*counter, long long octets) {
  if (!transfer_) return;
  if (octets > 0) (*transfer_).*counter += static_cast<std::uint64_t>(octets);
  look_for_sockets();
}

void File::was_read(long long octets) {
  look_for_streams();
  moved(&Transfer::octets_read, octets);
}

XrdSfsAio* File::counted(XrdSfsAio* request) { return transfer_ ? new CountedAio(request, transfer_) : request; }

XrdSfsXferSize File::read(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size) {
  const auto octets = wrapped_->read(offset, buffer, size);
  was_read(octets);
  return octets;
}

XrdSfsXferSize File::readv(XrdOucIOVec* parts, int count) {
  const auto octets = wrapped_->readv(parts, count);
  was_read(octets);
  return octets;
}

XrdSfsXferSize File::pgRead(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size, uint32_t* checksums,
                            uint64_t options) {
  const auto octets = wrapped_->pgRead(offset, buffer, size, checksums, options);
  was_read(octets);
  return octets;
}

XrdSfsXferSize File::write(XrdSfsFileOffset offset, const char* buffer, XrdSfsXferSize size) {
  const auto octets = wrapped_->write(offset, buffer, size);
  was_written(octets);
  return octets;
}

XrdSfsXferSize File::writev(XrdOucIOVec* parts, int count) {
  const auto octets = wrapped_->writev(parts, count);
  was_written(octets);
  return octets;
}

XrdSfsXferSize File::pgWrite(XrdSfsFileOffset offset, char* buffer, XrdSfsXferSize size, uint32_t* checksums,
                             uint64_t options) {
  const auto octets = wrapped_->pgWrite(offset, buffer, size, checksums, options);
  was_written(octets);
  return octets;
}

int File::read(XrdSfsAio* request) {
  look_for_streams();
  return wrapped_->read(counted(request));
}

int File::write(XrdSfsAio* request) { return wrapped_->write(counted(request)); }

int File::pgRead(XrdSfsAio* request, uint64_t options) {
  look_for_streams();
  return wrapped_->pgRead(counted(request), options);
}

int File::pgWrite(XrdSfsAio* request, uint64_t options) { return wrapped_->pgWrite(counted(request), options); }

// The server sends from a descriptor by itself (sendfile), unseen by us. Answered so, it asks SendData() instead.
int File::fctl(const int command, const char* arguments, XrdOucErrInfo& answer) {
  const int code = wrapped_->fctl(command, arguments, answer);
  if (command == SFS_FCTL_GETFD && code == SFS_OK && transfer_ && answer.getErrInfo() >= 0) {
    descriptor_ = answer.getErrInfo();
    answer.setErrCode(static_cast<int>(SFS_SFIO_FDVAL));
  }
  return code;
}

int File::SendData(XrdSfsDio* out, XrdSfsFileOffset offset, XrdSfsXferSize size) {
  look_for_streams();
  if (descriptor_ < 0) {
    const int code = wrapped_->SendData(out, offset, size);
    if (code == SFS_OK) was_read(size);
    return code;
  }
  if (out->SendFile(descriptor_) == 0) was_read(size);
  return SFS_OK;  // what failed is known to the server, which looks for it
}

}  // namespace scitags
