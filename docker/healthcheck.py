"""Exit with 0 while the worker in this container answers that it is live, else with 1 and the reason."""

import os
import sys
import urllib.error
import urllib.request

# No proxy from the environment: the worker is in this container.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    port = os.environ.get("HEALTH_PORT", "8081")
    try:
        with _opener.open(f"http://127.0.0.1:{port}/health", timeout=3) as answer:
            print(answer.read().decode())
    except urllib.error.HTTPError as refused:
        with refused:
            print(refused.read().decode())
        return 1
    except OSError as error:
        print(f"nothing answers on port {port}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
