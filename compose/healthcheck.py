"""``python healthcheck.py PORT [PATH]``: exit status 0 when the service in this container answers (at /healthz).

The standard library alone, so that a container without curl can be asked, and quickly.
"""

import http.client
import sys

TIMEOUT_SECONDS = 4.0


def main() -> int:
    """Ask once."""
    port, path = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "/healthz"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except OSError as error:
        print(f"port {port} does not answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
