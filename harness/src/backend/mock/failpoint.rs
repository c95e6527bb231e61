//! The mock's fail points: one in each of an update's two processes.

use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A fail point.
pub struct Point {
    pub name: &'static str,
    in_new: bool,
}

/// All fail points.
pub const POINTS: [Point; 2] =
    [Point { name: "save", in_new: false }, Point { name: "vcpus", in_new: true }];

/// The actions: kill the process, or kill the helper, which the mock does not have.
pub const ACTIONS: [&str; 2] = ["sigkill", "kill-helper"];

/// The armed fail points with their actions.
pub struct Armed(Vec<(String, String)>);

impl Armed {
    /// Parses `POINT=ACTION` arguments of the command line.
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

    /// Runs the action armed at `point` once, and logs it.
    pub fn at(&mut self, point: &str, mut log: impl io::Write) {
        let Some(at) = self.0.iter().position(|(armed, _)| armed == point) else { return };
        let (_, action) = self.0.remove(at);
        // If logging fails, the harness notices that the line is missing.
        let _ = log.write_all(format!("WARN failpoint point={point} action={action}\n").as_bytes());
        if action == ACTIONS[0] {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }

    /// The reply to `query-failpoints`.
    pub fn list(&self) -> Value {
        let point = |point: &Point| json!({ "name": point.name, "in-new": point.in_new });
        POINTS.iter().map(point).collect()
    }
}
