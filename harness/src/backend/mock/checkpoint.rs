//! Memory that the mock shares with its keeper, also across updates: it holds the newest state,
//! complete at any time.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of a slot; more than any state needs.
const SLOT: usize = 4 << 20;
/// Offset of the first slot. The header before it holds the valid slot's number and length.
const HEADER: usize = 4096;

/// Two slots, written alternately.
pub struct Checkpoint {
    file: File,
    memory: MmapRaw,
}

impl Checkpoint {
    /// A new checkpoint with an empty state.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create(c"cpr-checkpoint", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, (HEADER + 2 * SLOT) as i64)?;
        Self::adopt(file)
    }

    /// Maps the checkpoint of the previous process.
    pub fn adopt(file: OwnedFd) -> io::Result<Self> {
        let memory = MmapOptions::new().len(HEADER + 2 * SLOT).map_raw(&file)?;
        Ok(Self { file: file.into(), memory })
    }

    /// The number of its descriptor.
    pub fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Twice the length of the valid state, plus the number of its slot.
    fn valid(&self) -> &AtomicUsize {
        // SAFETY: at the beginning of the mapping, aligned, and only ever used as this.
        unsafe { &*self.memory.as_ptr().cast() }
    }

    /// Makes `state` the newest state atomically.
    pub fn write(&self, state: &[u8]) -> io::Result<()> {
        if state.len() > SLOT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let slot = 1 - self.valid().load(Ordering::Acquire) % 2;
        // SAFETY: in the mapping, and in the slot that is not valid and thus not read.
        unsafe {
            let to = self.memory.as_mut_ptr().add(HEADER + slot * SLOT);
            to.copy_from_nonoverlapping(state.as_ptr(), state.len());
        }
        self.valid().store(state.len() * 2 + slot, Ordering::Release);
        Ok(())
    }

    /// Reads the newest state; the writer must have ended.
    pub fn read(&self) -> Vec<u8> {
        let valid = self.valid().load(Ordering::Acquire);
        let (length, slot) = (valid / 2, valid % 2);
        // SAFETY: in the mapping; its writer has ended.
        let state = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(HEADER + slot * SLOT), length)
        };
        state.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_newest_state() {
        let checkpoint = Checkpoint::new().unwrap();
        assert_eq!(checkpoint.read(), b"");
        for state in [&b"first"[..], b"", b"the third"] {
            checkpoint.write(state).unwrap();
            assert_eq!(checkpoint.read(), state);
        }
        let file = checkpoint.file.try_clone().unwrap();
        assert_eq!(Checkpoint::adopt(file.into()).unwrap().read(), b"the third");
        assert!(checkpoint.write(&vec![0; SLOT + 1]).is_err());
    }
}
