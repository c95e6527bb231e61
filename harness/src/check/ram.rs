//! The guest's RAM is the same memory with the same content.

use super::{Action, Check, Scene};
use crate::observe::frames;

/// The check.
pub const CHECK: Check = Check {
    name: "ram",
    claim: "RAM is the same file in the same page frames; unchanged while the guest stands still",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before else { return Ok(()) };
    let after = scene.after;
    if let (Some(old), Some(new)) = (&before.ram.file, &after.ram.file) {
        if old.inode != new.inode {
            return Err(format!(
                "guest RAM is another file: was {old} (inode {}), is {new} (inode {})",
                old.inode.1, new.inode.1
            ));
        }
        if old.number != new.number {
            return Err(format!("the descriptor of guest RAM was {old}, is {new}"));
        }
    }
    // Single pages may move, when the kernel compacts memory or makes a huge page of them.
    let (seen, moved) = frames::compare(&before.ram.frames, &after.ram.frames);
    if moved * 2 > seen {
        return Err(format!("{moved} of {seen} pages of guest RAM lie in other page frames"));
    }
    // A reset while the guest stands still may load the kernel again.
    if scene.action.resets() || *scene.action == Action::Boot {
        return Ok(());
    }
    match (before.digest, after.digest) {
        (Some(old), Some(new)) if old != new => Err(format!(
            "guest RAM changed while the guest stood still: digest was {old:016x}, is {new:016x}"
        )),
        _ => Ok(()),
    }
}
