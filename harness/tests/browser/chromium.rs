//! A headless Chromium, driven by the DevTools protocol over a pipe.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The deadline for each reply and event of the browser.
const LIMIT: Duration = Duration::from_secs(60);
/// Starts the browser with the pipe on its descriptors 3 and 4.
const START: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#;

/// A browser, which is killed when this is dropped.
pub struct Chromium {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    last_id: u64,
    session: Option<String>,
    /// Every event received since the page was opened.
    pub events: Vec<Value>,
    _profile: tempfile::TempDir,
}

/// Finds the Chromium that `ci/install-chromium` installs.
pub fn find() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|dir| dir.join("chromium")).find(|path| path.is_file())
}

impl Chromium {
    /// Starts the Chromium at `path` with an empty page.
    pub fn start(path: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", START])
            .arg(path)
            .args(["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"])
            // The sandbox does not work as root, as in CI, and the page is our own.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = child.stdout.take().unwrap();
        let (messages, received) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(from).split(0) {
                let Ok(message) = message else { return };
                if messages.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut chromium = Self {
            child,
            to,
            from: received,
            last_id: 0,
            session: None,
            events: Vec::new(),
            _profile: profile,
        };
        let target = chromium.call("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = chromium.call("Target.attachToTarget", target);
        chromium.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            chromium.call(&format!("{domain}.enable"), json!({}));
        }
        chromium
    }

    /// Calls a method and returns its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        write!(self.to, "{message}\0").unwrap();
        let answer = self.until(method, |message| message["id"] == id);
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    /// Opens a page with this window width and colour scheme.
    pub fn open(&mut self, page: &Path, width: u32, scheme: &str) {
        self.events.clear();
        let size =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [scheme]}));
        let url = format!("file://{}", page.display());
        self.call("Page.navigate", json!({"url": url}));
        let loaded = |message: &Value| message["method"] == "Page.loadEventFired";
        if !self.events.iter().any(loaded) {
            self.until("the page to load", loaded);
        }
    }

    /// Evaluates an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let what = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let done = self.call("Runtime.evaluate", what);
        assert!(done["exceptionDetails"].is_null(), "{expression}: {done}");
        done["result"]["value"].clone()
    }

    /// Types into the focused element.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Lets the page use the clipboard.
    pub fn allow_clipboard(&mut self) {
        let permissions = json!(["clipboardReadWrite", "clipboardSanitizedWrite"]);
        self.call("Browser.grantPermissions", json!({"permissions": permissions}));
        self.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
    }

    /// Clicks on the middle of the element that the expression names.
    pub fn click(&mut self, element: &str) {
        let middle = format!(
            "{{ const node = {element}; node.scrollIntoView({{ block: 'center' }}); \
                const box = node.getBoundingClientRect(); \
                [box.x + box.width / 2, box.y + box.height / 2]; }}"
        );
        let at = self.eval(&middle);
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Takes a screenshot of the whole page, as PNG in base64.
    pub fn picture(&mut self) -> String {
        let what = json!({"captureBeyondViewport": true});
        self.call("Page.captureScreenshot", what)["data"].as_str().unwrap().to_owned()
    }

    fn until(&mut self, awaited: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.from.recv_timeout(left).unwrap_or_else(|e| {
                panic!("waited for {awaited}: {e}; last event: {:?}", self.events.last())
            });
            if message["id"].is_null() {
                self.events.push(message.clone());
            }
            if is_it(&message) {
                return message;
            }
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
