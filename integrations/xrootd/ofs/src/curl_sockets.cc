// Several copies between the same two hosts run at a time, with one tag each, so an address does not tell whose a socket
// is. libcurl tells: its callbacks for opening and closing a socket run in the thread of the copy. The library that
// sets its options is XRootD's; so its reference to curl_easy_setopt is made to point here, and that of nobody else.
#include "curl_sockets.hh"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstring>

#include "third_party.hh"

namespace scitags {
namespace {

// Of libcurl's ABI, which has not changed since 7.17 (curl/curl.h).
constexpr int kOpenSocketFunction = 20163, kCloseSocketFunction = 20208;
struct CurlAddress {
  int family, type, protocol;
  unsigned int length;
  sockaddr address;
};
using SetOption = int (*)(void*, int, ...);
using OpenSocket = int (*)(void*, int, CurlAddress*);
using CloseSocket = int (*)(void*, int);

SetOption real_set_option = nullptr;
std::atomic<OpenSocket> their_open{nullptr};
std::atomic<CloseSocket> their_close{nullptr};

int open_socket(void* data, int purpose, CurlAddress* address) {
  const OpenSocket theirs = their_open;
  const int socket = theirs != nullptr
                         ? theirs(data, purpose, address)
                         : ::socket(address->family, address->type | SOCK_CLOEXEC, address->protocol);
  if (auto* copy = HttpCopy::current(); copy != nullptr && socket >= 0) copy->opened(socket);
  return socket;
}

int close_socket(void* data, int socket) {
  if (auto* copy = HttpCopy::current()) copy->closed(socket);
  const CloseSocket theirs = their_close;
  return theirs != nullptr ? theirs(data, socket) : close(socket);
}

int set_option(void* handle, int option, ...) {
  // Every option has one argument, and each of the types that it may have goes the way of a pointer.
  std::va_list arguments;
  va_start(arguments, option);
  void* value = va_arg(arguments, void*);
  va_end(arguments);
  if (option == kOpenSocketFunction) {
    their_open = reinterpret_cast<OpenSocket>(value);
    if (their_close == nullptr) real_set_option(handle, kCloseSocketFunction, &close_socket);
    return real_set_option(handle, option, &open_socket);
  }
  if (option == kCloseSocketFunction) {
    their_close = reinterpret_cast<CloseSocket>(value);
    return real_set_option(handle, option, &close_socket);
  }
  return real_set_option(handle, option, value);
}

struct Dynamic {
  const ElfW(Sym)* symbols = nullptr;
  const char* strings = nullptr;
  const ElfW(Rela)* calls = nullptr;
  std::size_t octets = 0;
};

Dynamic dynamic_of(const link_map* library) {
  Dynamic found;
  for (const ElfW(Dyn)* entry = library->l_ld; entry->d_tag != DT_NULL; ++entry) {
    const auto pointer = entry->d_un.d_ptr;
    if (entry->d_tag == DT_SYMTAB) found.symbols = reinterpret_cast<const ElfW(Sym)*>(pointer);
    if (entry->d_tag == DT_STRTAB) found.strings = reinterpret_cast<const char*>(pointer);
    if (entry->d_tag == DT_JMPREL) found.calls = reinterpret_cast<const ElfW(Rela)*>(pointer);
    if (entry->d_tag == DT_PLTRELSZ) found.octets = entry->d_un.d_val;
  }
  return found;
}

// The part of a library that the loader closes to writing once it is loaded (RELRO).
struct Closed {
  ElfW(Addr) library, first = 0, last = 0;
};

int find_closed(dl_phdr_info* info, std::size_t, void* data) {
  auto* closed = static_cast<Closed*>(data);
  if (info->dlpi_addr != closed->library) return 0;
  for (int number = 0; number < info->dlpi_phnum; ++number) {
    const auto& part = info->dlpi_phdr[number];
    if (part.p_type != PT_GNU_RELRO) continue;
    closed->first = info->dlpi_addr + part.p_vaddr;
    closed->last = closed->first + part.p_memsz;
  }
  return 1;
}

// Write, where need be into a page that is closed to writing, which is left as it was found.
bool replace(ElfW(Addr) library, void** slot, void* value) {
  Closed closed{library};
  dl_iterate_phdr(&find_closed, &closed);
  const auto place = reinterpret_cast<ElfW(Addr)>(slot);
  if (place < closed.first || place >= closed.last) {
    *slot = value;
    return true;
  }
  const auto size = static_cast<ElfW(Addr)>(sysconf(_SC_PAGESIZE));
  auto* page = reinterpret_cast<void*>(place & ~(size - 1));
  if (mprotect(page, size, PROT_READ | PROT_WRITE) != 0) return false;
  *slot = value;
  return mprotect(page, size, PROT_READ) == 0;
}

}  // namespace

bool watch_curl_sockets(void* library) {
  link_map* map = nullptr;
  if (real_set_option != nullptr) return true;
  if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) return false;
  const Dynamic dynamic = dynamic_of(map);
  for (std::size_t number = 0; number < dynamic.octets / sizeof(ElfW(Rela)); ++number) {
    const auto& call = dynamic.calls[number];
    const char* name = dynamic.strings + dynamic.symbols[ELF64_R_SYM(call.r_info)].st_name;
    if (std::strcmp(name, "curl_easy_setopt") != 0) continue;
    auto** slot = reinterpret_cast<void**>(map->l_addr + call.r_offset);
    real_set_option = reinterpret_cast<SetOption>(*slot);
    return replace(map->l_addr, slot, reinterpret_cast<void*>(&set_option));
  }
  return false;
}

}  // namespace scitags
