"""A headless browser that clicks, types, saves and prints: the DevTools protocol over two pipes, standard library alone."""

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from pages import BROWSER

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --remote-debugging-pipe"
# The browser reads commands from its descriptor 3 and writes answers to 4.
CHILD = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
KEYS = {"Tab": 9, "Enter": 13, "Space": 32}
PATIENCE = 30  # times ten seconds, not counting those in which the machine has stopped both


class Browser:
    """One page of a browser whose files lie in `folder`; it saves into `folder/saved`. `problems` are its complaints."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 900, script: bool = True):
        self.saved, self.problems, self.events, self.number, self.rest = folder / "saved", [], [], 0, b""
        ours, theirs = os.pipe(), os.pipe()
        child = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
        flags = [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        command = [sys.executable, "-c", CHILD, *map(str, child), str(BROWSER), *flags, "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=child, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (*child, ours[0], theirs[1]):
            os.close(end)
        self.writes, self.reads, self.session = ours[1], theirs[0], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.media()
        self.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.saved), eventsEnabled=True)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.writes, self.reads):
            os.close(end)
        self.process.terminate()
        self.process.wait(20)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session and not method.startswith(("Target.", "Browser.")) else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.writes, data) :]
        answer = self.wait(lambda got: got.get("id") == self.number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, wanted: Any) -> dict[str, Any]:
        """The first message that is wanted, from those that came and those that come."""
        silent = 0
        while True:
            for place, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(place)
            while not select.select([self.reads], [], [], 10)[0]:
                silent += 1
                assert silent < PATIENCE, "the browser does not answer"
            found = os.read(self.reads, 1 << 20)
            assert found, "the browser has ended"
            *whole, self.rest = (self.rest + found).split(b"\0")
            self.events += map(json.loads, whole)
            for event in self.events[-len(whole) :] if whole else ():
                if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                    self.problems.append(json.dumps(event["params"])[:500])

    def media(self, media: str = "", scheme: str = "light") -> None:
        """What the page is shown on (screen, or print); nothing glides, so that a click hits what was there."""
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, url: str) -> "Browser":
        for where in ("about:blank", url):  # a page that differs by its anchor alone would not load again
            self.ask("Page.navigate", url=where)
            self.wait(lambda event: event.get("method") == "Page.loadEventFired")
        return self

    def js(self, expression: str) -> Any:
        """The value of an expression (or of its promise) on the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """The mouse on the middle of an element, which has to be seen there."""
        where = self.js(f"""(() => {{
            const part = document.querySelector({json.dumps(selector)});
            part.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = part.getClientRects()[0], x = box.x + box.width / 2, y = box.y + box.height / 2;
            const hit = document.elementFromPoint(x, y);
            return [x, y, Boolean(hit) && (part.contains(hit) || hit.contains(part))];
        }})()""")
        assert where[2], f"{selector} is covered"
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"Enter": "\r", "Space": " "}.get(key)
        about = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def save(self, selector: str) -> Path:
        """The file that a click saves."""
        self.click(selector)
        begun = self.wait(lambda event: event.get("method") == "Browser.downloadWillBegin")["params"]
        self.wait(lambda event: event.get("method") == "Browser.downloadProgress" and event["params"]["state"] == "completed")
        return self.saved / begun["suggestedFilename"]

    def picture(self, path: Path, whole: bool = False) -> Path:
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def printed(self, path: Path) -> Path:
        data = self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path
