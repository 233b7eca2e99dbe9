// A file of the client, opened by its tagged URL; all else is the client's own.
#pragma once

#include "XrdCl/XrdClFile.hh"
#include "XrdCl/XrdClPlugInInterface.hh"
#include "XrdVersion.hh"
#include "tagging.hh"

namespace scitags {

using XrdCl::Buffer, XrdCl::ChunkList, XrdCl::ResponseHandler, XrdCl::XRootDStatus;

// Seconds: 16 bits wide up to XRootD 5, time_t from 6 on.
template <class T>
T type_of_timeout(XRootDStatus (XrdCl::FilePlugIn::*)(ResponseHandler*, T));
using Timeout = decltype(type_of_timeout(&XrdCl::FilePlugIn::Visa));

class File final : public XrdCl::FilePlugIn {
 public:
  explicit File(const Tagging& tagging) : tagging_(tagging) {}

  XRootDStatus Open(const std::string& url, XrdCl::OpenFlags::Flags flags, XrdCl::Access::Mode mode,
                    ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Close(ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Stat(bool force, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Read(uint64_t offset, uint32_t size, void* buffer, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus PgRead(uint64_t offset, uint32_t size, void* buffer, ResponseHandler* handler,
                      Timeout timeout) override;
  XRootDStatus Write(uint64_t offset, uint32_t size, const void* buffer, ResponseHandler* handler,
                     Timeout timeout) override;
  XRootDStatus Write(uint64_t offset, Buffer&& buffer, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Write(uint64_t offset, uint32_t size, XrdCl::Optional<uint64_t> from, int descriptor,
                     ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus PgWrite(uint64_t offset, uint32_t size, const void* buffer, std::vector<uint32_t>& checksums,
                       ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Sync(ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Truncate(uint64_t size, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus VectorRead(const ChunkList& chunks, void* buffer, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus VectorWrite(const ChunkList& chunks, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus WriteV(uint64_t offset, const struct iovec* parts, int count, ResponseHandler* handler,
                      Timeout timeout) override;
  XRootDStatus Fcntl(const Buffer& argument, ResponseHandler* handler, Timeout timeout) override;
  XRootDStatus Visa(ResponseHandler* handler, Timeout timeout) override;
  bool IsOpen() const override { return file_.IsOpen(); }
  bool SetProperty(const std::string& name, const std::string& value) override {
    return file_.SetProperty(name, value);
  }
  bool GetProperty(const std::string& name, std::string& value) const override {
    return file_.GetProperty(name, value);
  }
#if XrdVNUMBER >= 60000
  XRootDStatus PreRead(const XrdCl::TractList& parts, ResponseHandler* handler, Timeout timeout) override {
    return file_.PreRead(parts, handler, timeout);
  }
  XRootDStatus Fcntl(XrdCl::QueryCode::Code code, const Buffer& argument, ResponseHandler* handler,
                     Timeout timeout) override {
    return file_.Fcntl(code, argument, handler, timeout);
  }
#endif

 private:
  const Tagging& tagging_;
  XrdCl::File file_{false};  // without plug-ins: it would be one of ours again
};

}  // namespace scitags
