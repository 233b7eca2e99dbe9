#include "transfer.hh"

#include <algorithm>
#include <utility>

namespace scitags {
namespace {

std::atomic<std::uint64_t> last_number{0};

}  // namespace

Transfer::Transfer(Scitag tag, bool is_upload, std::string application)
    : number(++last_number), tag(tag), is_upload(is_upload), application(std::move(application)) {}

bool Transfer::has_reported(const Connection& connection) const {
  return std::find(reported.begin(), reported.end(), connection) != reported.end();
}

}  // namespace scitags
