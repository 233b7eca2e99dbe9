"""A real broker: ActiveMQ, from Debian's packages, on loopback, with its directories in one of ours."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import stomp

LIBRARIES = Path("/usr/share/activemq")
START_SECONDS = 60.0
STOP_SECONDS = 20.0
CONFIG = """<beans xmlns="http://www.springframework.org/schema/beans"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" brokerName="tests" dataDirectory="{directory}/data"
    useJmx="false" schedulerSupport="false" persistent="true">
    <persistenceAdapter>
      <kahaDB directory="{directory}/data/kahadb" enableJournalDiskSyncs="false"/>
    </persistenceAdapter>
    <transportConnectors>
      <transportConnector name="stomp" uri="stomp://127.0.0.1:{port}?transport.hbGracePeriodMultiplier=1.5"/>
    </transportConnectors>
  </broker>
</beans>
"""


def why_not() -> str:
    """What is missing from the system; empty when nothing is."""
    if shutil.which("java") is None or not (LIBRARIES / "bin" / "activemq.jar").exists():
        return "Debian's activemq and a Java"
    return ""


class Broker:
    """The broker, as long as this object is open. It can be killed and started again, with what it has kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.port = int(one.getsockname()[1])
        self._config = directory / "activemq.xml"
        self._config.write_text(CONFIG.format(directory=directory, port=self.port))
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it can be connected to."""
        options = [f"-Dactivemq.{name}={LIBRARIES}" for name in ("home",)]
        options += [f"-Dactivemq.{name}={self.directory}" for name in ("base", "conf", "data")]
        command = ["java", "-Xmx512m", *options, "-jar", str(LIBRARIES / "bin" / "activemq.jar"), "start"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"xbean:file:{self._config}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                said = self.log.read_text(errors="replace")[-4000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def send(self, messages: list[bytes], destination: str) -> None:
        """Publish, each kept by the broker; returns when it has all."""
        connection = stomp.Connection12([("127.0.0.1", self.port)], auto_decode=False)
        connection.connect(wait=True)
        for number, message in enumerate(messages):
            last = {"receipt": "all"} if number == len(messages) - 1 else {}
            waiter = stomp.WaitingListener("all") if last else None
            if waiter is not None:
                connection.set_listener("waiting", waiter)
            connection.send(destination, message, headers={"persistent": "true", **last})
            if waiter is not None:
                waiter.wait_on_receipt()
        connection.disconnect()
