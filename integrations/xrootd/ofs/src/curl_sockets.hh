// Which sockets libcurl opens for a third-party copy.
#pragma once

namespace scitags {

// Have every socket that a loaded library has libcurl open told to the HttpCopy under way in that thread.
// library is a handle of dlopen(). False when the library does not set libcurl's options.
bool watch_curl_sockets(void* library);

}  // namespace scitags
