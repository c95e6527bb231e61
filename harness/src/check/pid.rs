//! The VMM is still the process that was started.

use std::process::ExitStatus;

use crate::observe::process::{self, Stat};

/// Name of this check. It runs before all others: without the process there is nothing to see.
pub const NAME: &str = "pid";

/// `started` is the process as it was started, `ended` its end if that was reaped.
pub fn check(started: &Stat, ended: Option<ExitStatus>, console: &str) -> Result<(), String> {
    let pid = started.pid;
    if let Some(status) = ended {
        let last = console.lines().last().map(|line| format!("; its last words: {line}"));
        let heir = process::group(pid).unwrap_or_default().into_iter().next();
        let heir = heir.map(|heir| format!("; process {} goes on in its place", heir.pid));
        return Err(format!(
            "process {pid} has ended ({status}){}{}",
            heir.unwrap_or_default(),
            last.unwrap_or_default()
        ));
    }
    let now = Stat::read(pid).map_err(|e| e.to_string())?;
    if !now.is_alive() {
        return Err(format!("process {pid} has ended"));
    }
    if (now.start_time, now.parent) != (started.start_time, started.parent) {
        return Err(format!(
            "process {pid} is another one: started at tick {} by {}, now at {} by {}",
            started.start_time, started.parent, now.start_time, now.parent
        ));
    }
    Ok(())
}
