//! Checks that the process runs the requested binary.

use super::{Check, Scene};

/// The `executable` check.
pub const CHECK: Check =
    Check { name: "executable", claim: "/proc/PID/exe is the requested binary", run };

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let (asked, seen) = (scene.executable, &scene.after.executable);
    if asked.inode == seen.inode {
        return Ok(());
    }
    Err(format!("the VMM executes {}, not {}", seen.path.display(), asked.path.display()))
}
