//! Checks that the guest's RAM is the same memory with the same content.

use super::{Action, Check, Scene};
use crate::observe::frames;
use crate::scenario::{Mode, Pages};

/// The `ram` check.
pub const CHECK: Check = Check {
    name: "ram",
    claim: "RAM is the same file in the same page frames, unless the mode copies it, and unchanged while the guest is stopped",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    match &scene.after.ram.file {
        Some(file) if scene.vm.memory_file && file.target != scene.files.ram => {
            return Err(format!("guest RAM is {file}, must be {}", scene.files.ram));
        }
        _ => {}
    }
    let Some(before) = scene.before else { return Ok(()) };
    let after = scene.after;
    let transfer = scene.handover.transfer();
    let copied = transfer.is_some_and(|transfer| transfer.mode == Mode::Normal);
    if let (Some(old), Some(new), false) = (&before.ram.file, &after.ram.file, copied) {
        if old.inode != new.inode {
            return Err(format!(
                "guest RAM is another file: was {old} (inode {}), is {new} (inode {})",
                old.inode.1, new.inode.1
            ));
        }
        if old.number != new.number && transfer.is_none() {
            return Err(format!("the descriptor of guest RAM was {old}, is {new}"));
        }
    }
    if let (Some(old), Some(new), true) = (&before.ram.file, &after.ram.file, copied)
        && old.inode == new.inode
    {
        return Err(format!("guest RAM was to be copied, and is still {old}"));
    }
    // The kernel may reclaim page frames of a file that no VMM maps, and a copy has its own.
    if transfer.is_none_or(|transfer| transfer.mode == Mode::CprTransfer) {
        let booted = before.mailbox.ready && after.mailbox.ready;
        let must = must_see(booted && frames::are_shown(), scene.vm.share, scene.vm.pages);
        let (seen, moved) = frames::compare(&before.ram.frames, &after.ram.frames);
        judge_frames(seen, moved, must, scene.vm.pages)?;
    }
    // A reset while the guest is stopped may load the kernel again.
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

/// Whether a page frame must have been seen, if the guest uses its RAM and the host shows frames.
fn must_see(in_use: bool, share: bool, pages: Pages) -> bool {
    // Of private RAM and of reserved pages only what the VMM itself touched is visible.
    in_use && share && pages != Pages::Reserved
}

/// Checks how many page frames changed. `must`: the frame of at least one page, the mailbox's, must
/// have been seen before and after.
fn judge_frames(seen: usize, moved: usize, must: bool, pages: Pages) -> Result<(), String> {
    if must && seen == 0 {
        return Err("no page of guest RAM was seen in a page frame before and after".to_owned());
    }
    // Single pages may move when the kernel compacts memory, many when it collapses them into huge
    // pages.
    let may_move = match pages {
        Pages::Transparent => seen / 2,
        Pages::Small | Pages::Reserved => (seen / 8).max(1),
    };
    match moved > may_move {
        true => Err(format!("{moved} of {seen} pages of guest RAM moved to other page frames")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::as_usual(true, true, Pages::Small, true)]
    #[case::transparent_huge_pages(true, true, Pages::Transparent, true)]
    #[case::not_booted(false, true, Pages::Small, false)]
    #[case::private_ram(true, false, Pages::Small, false)]
    #[case::reserved_pages(true, true, Pages::Reserved, false)]
    fn frames_that_must_be_seen(
        #[case] in_use: bool,
        #[case] share: bool,
        #[case] pages: Pages,
        #[case] must: bool,
    ) {
        assert_eq!(must_see(in_use, share, pages), must);
    }

    #[rstest]
    #[case::nothing_seen(0, 0, true, Pages::Small, false)]
    #[case::nothing_shown(0, 0, false, Pages::Small, true)]
    #[case::one_moved_of_two(2, 1, true, Pages::Small, true)]
    #[case::both_moved(2, 2, true, Pages::Small, false)]
    #[case::an_eighth(64, 8, true, Pages::Small, true)]
    #[case::more(64, 9, true, Pages::Small, false)]
    #[case::made_huge(64, 32, true, Pages::Transparent, true)]
    #[case::moved_though_huge(64, 33, true, Pages::Transparent, false)]
    fn frames(
        #[case] seen: usize,
        #[case] moved: usize,
        #[case] must: bool,
        #[case] pages: Pages,
        #[case] good: bool,
    ) {
        assert_eq!(judge_frames(seen, moved, must, pages).is_ok(), good);
    }
}
