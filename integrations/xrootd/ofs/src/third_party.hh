// Third-party copies: by HTTP, which this server drives itself, and by root, which a child of the destination moves.
#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "XrdHttp/XrdHttpExtHandler.hh"
#include "tag.hh"

namespace scitags {

// An HTTP third-party copy, from its request to its answer; all in one thread.
class HttpCopy {
 public:
  explicit HttpCopy(XrdHttpExtReq& request);
  ~HttpCopy();
  HttpCopy(const HttpCopy&) = delete;
  HttpCopy& operator=(const HttpCopy&) = delete;

  // The one that this thread is busy with; nullptr outside of one.
  static HttpCopy* current();

  // What the request's headers or its URL say.
  std::optional<Scitag> tag() const { return tag_; }

  // Have the other side told of the tag, where the request says nothing of that.
  void pass_on(Scitag tag);

  // Its sockets, as libcurl opens and closes them.
  void opened(int socket);
  void closed(int socket);
  // What is called while a socket that is about to be closed can still be looked at; empty: nothing.
  void set_before_close(std::function<void()> look) { before_close_ = std::move(look); }

  // Those opened after so many others were, and how many have been opened so far.
  std::vector<int> sockets_after(unsigned others) const;
  unsigned opened_so_far() const { return opened_; }

 private:
  const std::string* header(const char* name) const;

  XrdHttpExtReq& request_;
  std::optional<Scitag> tag_;
  std::vector<std::pair<int, unsigned>> sockets_;  // with the number of each
  unsigned opened_ = 0;
  std::function<void()> before_close_;
};

// The handler of the server, wrapped.
class CopyHandler : public XrdHttpExtHandler {
 public:
  explicit CopyHandler(XrdHttpExtHandler* wrapped) : wrapped_(wrapped) {}

  bool MatchesPath(const char* verb, const char* path) override { return wrapped_->MatchesPath(verb, path); }
  int Init(const char* config) override { return wrapped_->Init(config); }
  int ProcessReq(XrdHttpExtReq& request) override;

 private:
  XrdHttpExtHandler* wrapped_;
};

// Tags of third-party copies by root: the client's own open at the source says key and tag, the one that
// moves the data the key alone.
class RootCopies {
 public:
  // What an opaque says of such a copy.
  static std::optional<std::string_view> key_in(std::string_view opaque);
  // Whether this open arranges a copy, and moves no data itself.
  static bool is_arrangement(std::string_view opaque);

  void remember(std::string_view key, Scitag tag);
  std::optional<Scitag> find(std::string_view key);

 private:
  struct Known {
    Scitag tag;
    std::chrono::steady_clock::time_point until;
  };
  std::mutex mutex_;
  std::unordered_map<std::string, Known> known_;
};

}  // namespace scitags
