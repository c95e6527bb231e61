//! The mock's fail points: one in each of the two processes of an update, and one action.

use serde_json::{Value, json};

/// A fail point.
pub struct Point {
    pub name: &'static str,
    in_new: bool,
}

/// All.
pub const POINTS: [Point; 2] =
    [Point { name: "save", in_new: false }, Point { name: "vcpus", in_new: true }];

/// The process is killed.
pub const ACTION: &str = "sigkill";

/// Those at which something happens.
pub struct Armed(Vec<String>);

impl Armed {
    /// By `POINT=sigkill` of the command line.
    pub fn new(arguments: &[String]) -> Self {
        let point = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
        Self(arguments.iter().map(point).collect())
    }

    pub fn arm(&mut self, point: &str) {
        self.0.push(point.to_owned());
    }

    /// Kills this process if that is armed at `point`.
    pub fn at(&self, point: &str) {
        if self.0.iter().any(|armed| armed == point) {
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
