//! The mock's fail points: one in each of the two processes of an update.

use std::io;

use serde_json::{Value, json};

/// A fail point.
pub struct Point {
    pub name: &'static str,
    in_new: bool,
}

/// All.
pub const POINTS: [Point; 2] =
    [Point { name: "save", in_new: false }, Point { name: "vcpus", in_new: true }];

/// What can be done at one: the process is killed, or the helper, which a mock does without.
pub const ACTIONS: [&str; 2] = ["sigkill", "kill-helper"];

/// Those at which something happens, and what.
pub struct Armed(Vec<(String, String)>);

impl Armed {
    /// By `POINT=ACTION` of the command line.
    pub fn new(arguments: &[String]) -> Self {
        let armed = |word: &String| {
            let (point, action) = word.split_once('=')?;
            Some((point.to_owned(), action.to_owned()))
        };
        Self(arguments.iter().filter_map(armed).collect())
    }

    pub fn arm(&mut self, point: &str, action: &str) {
        self.0.push((point.to_owned(), action.to_owned()));
    }

    /// Does once what is armed at `point`, and logs that.
    pub fn at(&mut self, point: &str, mut log: impl io::Write) {
        let Some(at) = self.0.iter().position(|(armed, _)| armed == point) else { return };
        let (_, action) = self.0.remove(at);
        // What is not logged is for the harness to miss.
        let _ = log.write_all(format!("WARN failpoint point={point} action={action}\n").as_bytes());
        if action == ACTIONS[0] {
            // SAFETY: a signal to this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }

    /// `query-failpoints`.
    pub fn list(&self) -> Value {
        let point = |point: &Point| json!({ "name": point.name, "in-new": point.in_new });
        POINTS.iter().map(point).collect()
    }
}
