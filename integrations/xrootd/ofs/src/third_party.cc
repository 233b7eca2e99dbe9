#include "third_party.hh"

#include <strings.h>

#include <algorithm>

namespace scitags {
namespace {

constexpr char kHeader[] = "SciTag", kPassedOn[] = "TransferHeaderSciTag", kQuery[] = "xrd-http-query";
constexpr std::size_t kMaxKeys = 65536;
constexpr auto kKeyLife = std::chrono::minutes(10);  // from the arrangement to the open that moves data

thread_local HttpCopy* current_copy = nullptr;

}  // namespace

HttpCopy::HttpCopy(XrdHttpExtReq& request) : request_(request) {
  if (const auto* query = header(kQuery)) tag_ = scitag_in(*query);
  for (const char* name : {kHeader, kPassedOn})
    if (const auto* text = tag_ ? nullptr : header(name)) tag_ = parse_scitag(*text);
  current_copy = this;
}

HttpCopy::~HttpCopy() { current_copy = nullptr; }

HttpCopy* HttpCopy::current() { return current_copy; }

void HttpCopy::pass_on(Scitag tag) {
  if (tag != kUnreadable && header(kPassedOn) == nullptr) request_.headers[kPassedOn] = std::to_string(tag);
}

void HttpCopy::opened(int socket) { sockets_.emplace_back(socket, ++opened_); }

void HttpCopy::closed(int socket) {
  if (before_close_) before_close_();
  const auto is_it = [socket](const auto& one) { return one.first == socket; };
  sockets_.erase(std::remove_if(sockets_.begin(), sockets_.end(), is_it), sockets_.end());
}

std::vector<int> HttpCopy::sockets_after(unsigned others) const {
  std::vector<int> found;
  for (const auto& [socket, number] : sockets_)
    if (number > others) found.push_back(socket);
  return found;
}

const std::string* HttpCopy::header(const char* name) const {
  for (const auto& [key, value] : request_.headers)
    if (strcasecmp(key.c_str(), name) == 0) return &value;
  return nullptr;
}

int CopyHandler::ProcessReq(XrdHttpExtReq& request) {
  HttpCopy copy(request);  // finds its way to the callbacks by itself
  return wrapped_->ProcessReq(request);
}

std::optional<std::string_view> RootCopies::key_in(std::string_view opaque) { return parameter(opaque, "tpc.key"); }

bool RootCopies::is_arrangement(std::string_view opaque) {
  return parameter(opaque, "tpc.dst") || parameter(opaque, "tpc.src") || parameter(opaque, "tpc.stage");
}

void RootCopies::remember(std::string_view key, Scitag tag) {
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard<std::mutex> guard(mutex_);
  if (known_.size() >= kMaxKeys)
    for (auto at = known_.begin(); at != known_.end();) at = at->second.until < now ? known_.erase(at) : std::next(at);
  if (known_.size() < kMaxKeys) known_[std::string(key)] = {tag, now + kKeyLife};
}

std::optional<Scitag> RootCopies::find(std::string_view key) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto found = known_.find(std::string(key));
  if (found == known_.end() || found->second.until < std::chrono::steady_clock::now()) return std::nullopt;
  return found->second.tag;
}

}  // namespace scitags
