//! The commit point: one atomic step on one word decides which process may run the guest. The word
//! is in a sealed page shared by the VMM's process, whatever program it executes, and its keeper.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::MFdFlags;

use crate::{memfd, sys};

/// The name of the page's descriptor.
pub const PAGE_FD: &str = "keeper.commit";
const BYTES: u64 = 4096;
/// Offset of the note in the page, in bytes.
const NOTE_OFFSET: usize = 64;
/// Maximum size of the note in bytes, without its NUL.
const NOTE_BYTES: usize = 2048;
/// The exit status of a process whose guest another process has claimed.
const LOST: i32 = 75;

/// No claim has been made: no process has advanced the guest beyond the old state, so a process
/// that fails can be replaced.
pub const UNDECIDED: u32 = 0;

/// The process that may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    /// The process that was given the guest. Once it executes its first `KVM_RUN`, the old state is
    /// stale.
    Vmm = 1,
    /// The keeper. The process that was given the guest must no longer run it.
    Keeper = 2,
    /// The process that had the guest before, for good: neither the keeper nor a successor is
    /// needed any longer.
    Released = 3,
    /// Another process, to which the guest was transferred (`migration::transfer`). The process
    /// that had the guest before must no longer run it, nor must its keeper.
    Successor = 4,
}

/// A shared word that can be replaced atomically.
pub trait Word {
    /// Replaces `from` by `to`, and returns whether it did.
    fn replace(&self, from: u32, to: u32) -> bool;
}

impl Word for AtomicU32 {
    fn replace(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// Makes a claim, in one atomic step. Returns true for at most one caller ever.
pub fn claim(word: &impl Word, claim: Claim) -> bool {
    word.replace(UNDECIDED, claim as u32)
}

/// The page with the word, and its descriptor.
#[derive(Debug)]
pub struct CommitPage {
    fd: OwnedFd,
    mapped: Arc<CommitPoint>,
}

/// The page with the word. It does not need its descriptor.
#[derive(Debug)]
pub struct CommitPoint {
    word: NonNull<AtomicU32>,
}

// SAFETY: the mapping is shared memory with one atomic word in it.
unsafe impl Send for CommitPoint {}
// SAFETY: as above.
unsafe impl Sync for CommitPoint {}

impl Deref for CommitPage {
    type Target = CommitPoint;

    fn deref(&self) -> &CommitPoint {
        &self.mapped
    }
}

impl CommitPage {
    /// Creates a page, close-on-exec.
    pub fn create() -> io::Result<Self> {
        let file = File::from(memfd::create(c"cpr-commit", MFdFlags::empty())?);
        file.set_len(BYTES)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(file.into())
    }

    /// Adopts the page that an update handed over.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        let fixed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        let file = File::from(fd);
        if !seals.contains(fixed) || file.metadata()?.len() != BYTES {
            return Err(io::Error::other("it is not a sealed page"));
        }
        Self::map(file.into())
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which overlaps nothing, of a file that cannot become shorter.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES as usize,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        let word = NonNull::new(at.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { fd, mapped: Arc::new(CommitPoint { word }) })
    }

    /// Returns the page without its descriptor.
    pub fn point(&self) -> &Arc<CommitPoint> {
        &self.mapped
    }
}

impl CommitPoint {
    /// Returns the word. It does not move while the page exists.
    pub fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is large enough, is page-aligned, and lives as long as `self`.
        unsafe { self.word.as_ref() }
    }
}

/// How a process takes a guest over from the one that has it: by which claim on that one's commit
/// point.
///
/// Until then its own keeper must not act. The same word decides between several processes, so it
/// matters which of them has the guest.
#[derive(Debug)]
pub struct TakeOver {
    point: Arc<CommitPoint>,
    transferred: bool,
}

impl TakeOver {
    /// Of a process image that was executed in the place of the one before.
    pub fn in_place(point: Arc<CommitPoint>) -> Self {
        Self { point, transferred: false }
    }

    /// Of another process.
    pub fn by_transfer(point: Arc<CommitPoint>) -> Self {
        Self { point, transferred: true }
    }

    /// Returns whether this process has the guest.
    pub fn has_happened(&self) -> bool {
        match self.transferred {
            true => self.point.is_claimed_by(Claim::Successor),
            // A process that had dismissed its keeper needed no claim.
            false => {
                self.point.is_claimed_by(Claim::Vmm) || self.point.is_claimed_by(Claim::Released)
            }
        }
    }
}

impl CommitPoint {
    /// Returns whether no claim was made.
    pub fn is_undecided(&self) -> bool {
        self.word().load(Ordering::SeqCst) == UNDECIDED
    }

    /// Returns whether this claim was made.
    pub fn is_claimed_by(&self, claim: Claim) -> bool {
        self.word().load(Ordering::SeqCst) == claim as u32
    }

    /// Makes the claim. Ends this process if another one made its claim first: the keeper, which
    /// waits for this process to end, or the process to which the guest was transferred.
    pub fn claim_or_end(&self, wanted: Claim) {
        if !claim(self.word(), wanted) {
            self.end_if_lost();
        }
    }

    /// Dismisses the keeper. Ends this process if the keeper made its claim first.
    pub fn dismiss_or_end(&self) {
        if !claim(self.word(), Claim::Released) && self.is_claimed_by(Claim::Keeper) {
            self.end();
        }
    }

    /// Takes the guest back from a process that it was offered to. Returns false if that process
    /// has claimed it, and ends this process if the keeper has.
    pub fn take_back_or_end(&self) -> bool {
        self.dismiss_or_end();
        !self.is_claimed_by(Claim::Successor)
    }

    /// Ends this process, which was to take the guest over, if another one has claimed it.
    pub fn end_if_lost(&self) {
        if self.is_claimed_by(Claim::Keeper) || self.is_claimed_by(Claim::Successor) {
            self.end();
        }
    }

    fn end(&self) {
        // SAFETY: numbers only. Nothing of this process may be cleaned up: it belongs to the
        // process that made the claim.
        let _ = unsafe { sys::call(libc::SYS_exit_group, [LOST as usize, 0, 0, 0, 0, 0]) };
    }

    /// Leaves a note for the keeper that says why this process ends. Async-signal-safe.
    pub fn write_note(&self, text: &str) {
        let length = text.floor_char_boundary(NOTE_BYTES);
        // SAFETY: the page has room for it after the word; the keeper reads it after this process
        // has ended.
        unsafe {
            let at = self.word.as_ptr().cast::<u8>().add(NOTE_OFFSET);
            at.copy_from_nonoverlapping(text.as_ptr(), length);
            at.add(length).write(0);
        }
    }

    /// Returns the note; empty if there is none. Async-signal-safe.
    pub fn note(&self) -> &str {
        // SAFETY: as above; the process that could write it has ended.
        let bytes = unsafe {
            let at = self.word.as_ptr().cast::<u8>().add(NOTE_OFFSET);
            std::slice::from_raw_parts(at, NOTE_BYTES + 1)
        };
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        str::from_utf8(&bytes[..length]).unwrap_or_default()
    }
}

impl AsFd for CommitPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for CommitPoint {
    fn drop(&mut self) {
        // SAFETY: the mapping is this long, and no reference to the word outlives `self`.
        unsafe { libc::munmap(self.word.as_ptr().cast(), BYTES as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_claim_counts() {
        const ALL: [Claim; 4] = [Claim::Vmm, Claim::Keeper, Claim::Released, Claim::Successor];
        for first in ALL {
            let page = CommitPage::create().unwrap();
            let other = CommitPage::adopt(page.fd.try_clone().unwrap()).unwrap();
            assert!(claim(page.word(), first));
            for second in ALL {
                assert!(!claim(other.word(), second), "{first:?}, then {second:?}");
            }
        }
    }

    #[test]
    fn offered_guest_is_taken_back_unless_it_was_claimed() {
        let page = CommitPage::create().unwrap();
        assert!(page.take_back_or_end());
        assert!(!claim(page.word(), Claim::Successor));
        let page = CommitPage::create().unwrap();
        assert!(claim(page.word(), Claim::Successor));
        assert!(!page.take_back_or_end());
        page.dismiss_or_end();
        assert!(TakeOver::by_transfer(page.point().clone()).has_happened());
        assert!(!TakeOver::in_place(page.point().clone()).has_happened());
    }

    #[test]
    fn note_reads_back_through_the_other_mapping() {
        let page = CommitPage::create().unwrap();
        let other = CommitPage::adopt(page.fd.try_clone().unwrap()).unwrap();
        assert_eq!(other.note(), "");
        page.write_note("why");
        assert_eq!(other.note(), "why");
        page.write_note(&"é".repeat(NOTE_BYTES));
        assert_eq!(other.note().len(), NOTE_BYTES);
    }

    #[test]
    fn rejects_page_that_could_shrink() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        assert!(CommitPage::adopt(file.into()).is_err());
    }
}
