// scitags-xrootd-tag FILE [path=P] [vo=V] [role=R] [user=U] [host=H] [address=A]: which tag the scitags lines of a
// configuration give a transfer that brings none; "experiment activity", or "none". Status 1 where lines are wrong.
#include <iostream>
#include <map>
#include <string>

#include "XrdOuc/XrdOucEnv.hh"
#include "XrdSys/XrdSysError.hh"
#include "XrdSys/XrdSysLogger.hh"
#include "config.hh"

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: scitags-xrootd-tag FILE [path=P] [vo=V] [role=R] [user=U] [host=H] [address=A]\n";
    return 2;
  }
  std::map<std::string, std::string> given;
  for (int number = 2; number < count; ++number) {
    const std::string one = arguments[number];
    const auto equals = one.find('=');
    given[one.substr(0, equals)] = equals == std::string::npos ? "" : one.substr(equals + 1);
  }
  XrdSysLogger logger(STDERR_FILENO, 0);
  XrdSysError log(&logger, "scitags_");
  XrdOucEnv environment;
  try {
    const auto settings = scitags::read_settings(arguments[1], &environment, log);
    scitags::Subject subject{given["path"], given["vo"], given["role"], given["user"], given["host"], {}};
    if (const auto network = scitags::Network::parse(given["address"])) subject.address = network->first;
    const auto tag = settings.rules.tag_of(subject);
    if (tag)
      std::cout << (*tag >> 6) << ' ' << (*tag & scitags::kActivityMax) << '\n';
    else
      std::cout << "none\n";
  } catch (const scitags::ConfigError& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
