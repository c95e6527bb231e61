//! The process executes what it was told to.

use super::{Check, Scene};

/// The check.
pub const CHECK: Check =
    Check { name: "executable", claim: "/proc/PID/exe is the binary that was asked for", run };

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let (asked, seen) = (scene.executable, &scene.after.executable);
    if asked.inode == seen.inode {
        return Ok(());
    }
    Err(format!("the VMM executes {}, not {}", seen.path.display(), asked.path.display()))
}
