"""Where Apache Kafka's jars are: resolved once by Maven, then remembered.

The jars stay in Maven's own repository (``~/.m2``); what is kept is the class path.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from fleetpulse.local.processes import StartError

KAFKA_VERSION: Final = "4.1.1"
_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath"
# 170 MB on a slow line; without network Maven gives up by itself.
_RESOLVE_TIMEOUT_SECONDS: Final = 600.0
# Kafka brings slf4j and log4j but leaves the binding between them to its distribution.
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>fleetpulse</groupId><artifactId>apache-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""


def default_cache_dir() -> Path:
    """The user's cache folder of this product."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleetpulse"


def missing_program() -> str | None:
    """Which program Apache Kafka needs and the machine lacks, with what to do; None when all are there."""
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            return f"{program} is not on the PATH (Debian: apt-get install {package})"
    return None


def class_path(cache_dir: Path) -> str:
    """Kafka's class path, resolved through Maven the first time. Raises StartError."""
    remembered = cache_dir / f"kafka-{KAFKA_VERSION}.classpath"
    cache_dir.mkdir(parents=True, exist_ok=True)
    # One process fetches, others wait for it: Maven's repository takes no two writers.
    with (cache_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if remembered.exists():
            found = remembered.read_text()
            if all(Path(jar).exists() for jar in found.split(os.pathsep)):
                return found
        found = _resolve()
        partial = cache_dir / f"{remembered.name}.{os.getpid()}"
        partial.write_text(found)
        partial.replace(remembered)
    return found


def _resolve() -> str:
    """Ask Maven. Offline first: with a warm repository that is quicker and needs no network."""
    reason = missing_program()
    if reason is not None:
        raise StartError(f"Apache Kafka cannot be fetched: {reason}")
    with tempfile.TemporaryDirectory(prefix="fleetpulse-kafka-") as folder:
        pom, output = Path(folder, "pom.xml"), Path(folder, "classpath")
        pom.write_text(_POM)
        asked = [_DEPENDENCY_PLUGIN, "-DincludeScope=runtime", f"-Dmdep.outputFile={output}"]
        for mode in (("--offline",), ()):
            command = ["mvn", "--batch-mode", "--quiet", "--file", str(pom), *mode, *asked]
            try:
                result = subprocess.run(
                    command, capture_output=True, text=True, timeout=_RESOLVE_TIMEOUT_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise StartError(f"Maven did not fetch Apache Kafka within {_RESOLVE_TIMEOUT_SECONDS:g} s") from error
            if result.returncode == 0:
                return output.read_text().strip()
    reasons = [line for line in result.stdout.splitlines() if "ERROR" in line]
    raise StartError(f"Maven cannot fetch Apache Kafka {KAFKA_VERSION}: {reasons[0] if reasons else result.stderr}")
