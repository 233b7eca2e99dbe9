#include "transfer.hh"

namespace scitags {
namespace {

std::atomic<std::uint64_t> last_number{0};

}  // namespace

Transfer::Transfer(Scitag tag, bool is_upload, const char* application)
    : number(++last_number), tag(tag), is_upload(is_upload), application(application) {}

}  // namespace scitags
