#include "file.hh"

namespace scitags {

XRootDStatus File::Open(const std::string& url, XrdCl::OpenFlags::Flags flags, XrdCl::Access::Mode mode,
                        ResponseHandler* handler, Timeout timeout) {
  return file_.Open(tagging_.tagged(url), flags, mode, handler, timeout);
}

XRootDStatus File::Close(ResponseHandler* handler, Timeout timeout) { return file_.Close(handler, timeout); }

XRootDStatus File::Stat(bool force, ResponseHandler* handler, Timeout timeout) {
  return file_.Stat(force, handler, timeout);
}

XRootDStatus File::Read(uint64_t offset, uint32_t size, void* buffer, ResponseHandler* handler, Timeout timeout) {
  return file_.Read(offset, size, buffer, handler, timeout);
}

XRootDStatus File::PgRead(uint64_t offset, uint32_t size, void* buffer, ResponseHandler* handler, Timeout timeout) {
  return file_.PgRead(offset, size, buffer, handler, timeout);
}

XRootDStatus File::Write(uint64_t offset, uint32_t size, const void* buffer, ResponseHandler* handler,
                         Timeout timeout) {
  return file_.Write(offset, size, buffer, handler, timeout);
}

XRootDStatus File::Write(uint64_t offset, Buffer&& buffer, ResponseHandler* handler, Timeout timeout) {
  return file_.Write(offset, std::move(buffer), handler, timeout);
}

XRootDStatus File::Write(uint64_t offset, uint32_t size, XrdCl::Optional<uint64_t> from, int descriptor,
                         ResponseHandler* handler, Timeout timeout) {
  return file_.Write(offset, size, from, descriptor, handler, timeout);
}

XRootDStatus File::PgWrite(uint64_t offset, uint32_t size, const void* buffer, std::vector<uint32_t>& checksums,
                           ResponseHandler* handler, Timeout timeout) {
  return file_.PgWrite(offset, size, buffer, checksums, handler, timeout);
}

XRootDStatus File::Sync(ResponseHandler* handler, Timeout timeout) { return file_.Sync(handler, timeout); }

XRootDStatus File::Truncate(uint64_t size, ResponseHandler* handler, Timeout timeout) {
  return file_.Truncate(size, handler, timeout);
}

XRootDStatus File::VectorRead(const ChunkList& chunks, void* buffer, ResponseHandler* handler, Timeout timeout) {
  return file_.VectorRead(chunks, buffer, handler, timeout);
}

XRootDStatus File::VectorWrite(const ChunkList& chunks, ResponseHandler* handler, Timeout timeout) {
  return file_.VectorWrite(chunks, handler, timeout);
}

XRootDStatus File::WriteV(uint64_t offset, const struct iovec* parts, int count, ResponseHandler* handler,
                          Timeout timeout) {
  return file_.WriteV(offset, parts, count, handler, timeout);
}

XRootDStatus File::Fcntl(const Buffer& argument, ResponseHandler* handler, Timeout timeout) {
  return file_.Fcntl(argument, handler, timeout);
}

XRootDStatus File::Visa(ResponseHandler* handler, Timeout timeout) { return file_.Visa(handler, timeout); }

}  // namespace scitags
